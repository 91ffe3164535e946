"""The flags of `sgl-omni bench`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from gateway.bench.media import COMMITTED
from gateway.bench.scenarios import Input, MediaAs, Output, Scenario
from omni_pipeline.errors import StartupError

_SERVER, _ASKED, _LOAD, _RESULT, _BASE = "Server", "Requests", "Load", "Results", "Baseline"
_CAPACITY = "Gapless capacity"
_FRAMES = 60
_REQUESTS, _CAPACITY_REQUESTS = 32, 50  # one gap in 50 answers is more than 1 %, and one in twice 50 is not
_SHARE, _MOST = 0.99, 256


class AudioFormat(StrEnum):
    """Choices of ``--audio-format``: the formats in which the length of a chunk is known when the chunk arrives."""

    WAV = "wav"
    PCM16 = "pcm16"


def bench(
    url: Annotated[
        str, typer.Option(help="Address of the server.", metavar="URL", rich_help_panel=_SERVER)
    ] = "http://127.0.0.1:8008",
    model: Annotated[
        str | None,
        typer.Option(help="Model name in the requests.", metavar="NAME", rich_help_panel=_SERVER,
                     show_default="the first model that the server lists"),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="API key, sent as bearer token.", metavar="KEY", envvar="SGL_OMNI_API_KEY",
                     rich_help_panel=_SERVER, show_default=False),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Longest time for one request, in seconds.", min=0.1, rich_help_panel=_SERVER)
    ] = 600.0,
    input_: Annotated[
        Input, typer.Option("--input", help="Media in each request besides the text; mixed is one of each kind.",
                            rich_help_panel=_ASKED),
    ] = Input.TEXT,
    output: Annotated[
        Output | None,
        typer.Option(help="What to ask for; whole-speech is not streamed, and mixed is half speech, a quarter text, a "
                     "quarter whole-speech.", rich_help_panel=_ASKED, show_default="text; with --capacity, speech"),
    ] = None,
    prompt_words: Annotated[
        int, typer.Option(help="Number of words in each prompt.", min=1, rich_help_panel=_ASKED)
    ] = 64,
    tokens: Annotated[
        int, typer.Option(help="Text tokens of each answer: the exact number (by ignore_eos).", min=1,
                          rich_help_panel=_ASKED),
    ] = 64,
    audio_frames: Annotated[
        int | None,
        typer.Option(help="Exact number of codec frames of speech in each answer (80 ms each).", min=1,
                     rich_help_panel=_ASKED, show_default=f"{_FRAMES}; with --natural, the server's limit"),
    ] = None,
    natural: Annotated[
        bool, typer.Option("--natural", help="Let the model end its answers; the given lengths are then upper limits.",
                           rich_help_panel=_ASKED),
    ] = False,
    voice: Annotated[
        str | None,
        typer.Option(help="Voice of the speech.", metavar="NAME", rich_help_panel=_ASKED,
                     show_default="the server's default"),
    ] = None,
    audio_format: Annotated[
        AudioFormat, typer.Option(help="Format of the streamed speech.", rich_help_panel=_ASKED)
    ] = AudioFormat.WAV,
    media_dir: Annotated[
        Path, typer.Option(help="Directory of the pictures, sounds and clips to send.", metavar="DIR",
                           rich_help_panel=_ASKED, show_default="tests/data, if run in a checkout"),
    ] = COMMITTED,
    media_as: Annotated[
        MediaAs, typer.Option(help="Send media as content parts, or in the top-level lists images, audios and videos.",
                              rich_help_panel=_ASKED)
    ] = MediaAs.PARTS,
    same_media: Annotated[
        bool, typer.Option("--same-media", help="Send the same media each time, to measure the server's caches.",
                           rich_help_panel=_ASKED),
    ] = False,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(help="Number of requests in flight: the next request is sent when an answer is complete. "
                     "Repeatable.", min=1,
                     rich_help_panel=_LOAD, show_default="1"),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Requests per second, sent at random (Poisson) times. Repeatable.", min=0.001,
                     rich_help_panel=_LOAD, show_default=False),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(help="Requests to measure at each load; with --capacity at least, because many streams need more.",
                     min=1, rich_help_panel=_LOAD, show_default=f"{_REQUESTS}; with --capacity, {_CAPACITY_REQUESTS}"),
    ] = None,
    warmup: Annotated[
        int, typer.Option(help="Warm-up requests at each load, sent first and not counted.", min=0,
                          rich_help_panel=_LOAD)
    ] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the prompts and the arrival times.", rich_help_panel=_LOAD)] = 0,
    capacity: Annotated[
        bool, typer.Option("--capacity", help="Find by bisection the largest number of streamed spoken answers at once "
                           "that play without a gap.", rich_help_panel=_CAPACITY),
    ] = False,
    gapless_share: Annotated[
        float | None,
        typer.Option(help="Share of the answers that must play without a gap.", min=0.01, max=1.0,
                     rich_help_panel=_CAPACITY, show_default=str(_SHARE)),
    ] = None,
    max_streams: Annotated[
        int | None,
        typer.Option(help="Largest number of streams to try.", min=1, rich_help_panel=_CAPACITY,
                     show_default=str(_MOST)),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write all results to this JSON file.", metavar="FILE", dir_okay=False,
                     rich_help_panel=_RESULT, show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the results in this SVG file.", metavar="FILE.svg", dir_okay=False,
                     rich_help_panel=_RESULT, show_default=False),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Run the same requests through Hugging Face Transformers too, in "
                           "alternation with the server, and compare. Needs --model-path.", rich_help_panel=_BASE),
    ] = False,
    model_path: Annotated[
        str | None,
        typer.Option(help="Checkpoint of the baseline.", metavar="DIR|NAME", rich_help_panel=_BASE, show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Measure any server that offers this API: latencies, continuity of speech, throughput."""
    # Imported inside the function, so that the other commands do not load the media decoders.
    from gateway.bench.display import ProgressBar, show
    from gateway.bench.plan import BenchPlan, CapacityGoal
    from gateway.bench.plot import draw
    from gateway.bench.report import Load
    from gateway.bench.run import run

    if capacity:
        _refuse_with_capacity(
            {
                "--rate": rate is not None,
                "--concurrency": concurrency is not None,
                f"--output {output}": output not in (None, Output.SPEECH),
                "--baseline": baseline,
            }
        )
    elif gapless_share is not None or max_streams is not None:
        flag = "--max-streams" if gapless_share is None else "--gapless-share"
        raise typer.BadParameter(f"{flag} describes the search of --capacity: give both.")
    if output is None:
        output = Output.SPEECH if capacity else Output.TEXT
    if baseline != (model_path is not None):
        raise typer.BadParameter("--baseline and --model-path need each other: give both.")
    if baseline and rate:
        raise typer.BadParameter(
            "--baseline does not work with --rate, because it compares answers in turns; use --concurrency."
        )
    if baseline and output is Output.MIXED:
        raise typer.BadParameter("--baseline does not work with --output mixed: compare one kind of answer at a time.")
    if plot is not None and plot.suffix != ".svg":
        raise typer.BadParameter(f"--plot writes SVG: name the file {plot.with_suffix('.svg')}.")
    for file in filter(None, (json_file, plot)):
        if not file.parent.is_dir():
            raise typer.BadParameter(f"There is no directory {file.parent} to write {file.name} to.")
    if output is not Output.TEXT and not natural and audio_frames is None:
        audio_frames = _FRAMES
    loads = [Load(concurrency=streams) for streams in concurrency or ([] if rate else [1])]
    loads += [Load(rate=per_second) for per_second in rate or []]
    scenario = Scenario(
        input=input_, output=output, prompt_words=prompt_words, tokens=tokens, audio_frames=audio_frames,
        natural=natural, same_media=same_media, voice=voice, audio_format=audio_format.value, media_as=media_as,
    )  # fmt: skip
    plan = BenchPlan(
        url=url, model=model, api_key=api_key, scenario=scenario, loads=loads,
        requests=requests or (_CAPACITY_REQUESTS if capacity else _REQUESTS), warmup=warmup,
        seed=seed, timeout=timeout, media_dir=media_dir, baseline=model_path,
        capacity=CapacityGoal(gapless_share or _SHARE, max_streams or _MOST) if capacity else None,
    )  # fmt: skip
    with ProgressBar(Console(stderr=True)) as progress:
        report = asyncio.run(run(plan, progress))
    show(report, Console())
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if plot is not None:
        plot.write_text(draw(report))
    if not any(level.completed for level in report.levels):
        raise StartupError("No request was answered.")


def _refuse_with_capacity(given: Mapping[str, bool]) -> None:
    """Refuse flags that contradict ``--capacity``.

    Args:
        given: For each flag that does, whether it was given.
    """
    why = "--capacity chooses the number of streams itself, and measures streamed spoken answers"
    for flag, present in given.items():
        if present:
            raise typer.BadParameter(f"{flag} does not work with --capacity: {why}.")
