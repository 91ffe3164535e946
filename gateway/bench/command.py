"""The flags of `sgl-omni bench`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from gateway.bench.media import COMMITTED
from gateway.bench.scenarios import Input, MediaAs, Output, Scenario
from omni_pipeline.errors import StartupError

if TYPE_CHECKING:
    from gateway.bench.talk.run import TalkPlan

_SERVER, _ASKED, _LOAD, _RESULT, _BASE = "Server", "Requests", "Load", "Results", "Baseline"
_CAPACITY = "Gapless capacity"
_TALK = "Conversations"
_FRAMES = 60
# The default of --gapless-share allows gaps in 1 % of the answers. In one measurement of 50 answers, a single answer
# with gaps is already 2 %, so the level fails. In two measurements with 100 answers together, a single answer with gaps
# is 1 %, so the level does not fail.
_REQUESTS, _CAPACITY_REQUESTS = 32, 50
_SHARE, _MOST = 0.99, 256
_SILENCE_MS, _INTERRUPTED = 500, 0.25


class AudioFormat(StrEnum):
    """The formats that ``--audio-format`` accepts. In these formats, the length of a chunk is known when the chunk
    arrives.
    """

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
        Input, typer.Option("--input", help="Media in each request besides the text. 'mixed' means one item of each "
                            "kind.", rich_help_panel=_ASKED),
    ] = Input.TEXT,
    output: Annotated[
        Output | None,
        typer.Option(help="Kind of the answers. Only 'whole-speech' is not streamed. 'mixed' means that half of the "
                     "answers are speech, a quarter are text, and a quarter are whole-speech.", rich_help_panel=_ASKED,
                     show_default="text; with --capacity, speech"),
    ] = None,
    prompt_words: Annotated[
        int, typer.Option(help="Number of words in each prompt.", min=1, rich_help_panel=_ASKED)
    ] = 64,
    tokens: Annotated[
        int, typer.Option(help="Exact number of text tokens in each answer (each request sets 'ignore_eos').", min=1,
                          rich_help_panel=_ASKED),
    ] = 64,
    audio_frames: Annotated[
        int | None,
        typer.Option(help="Exact number of codec frames (80 ms each) of speech in each answer.", min=1,
                     rich_help_panel=_ASKED, show_default=f"{_FRAMES}; with --natural, the server's limit"),
    ] = None,
    natural: Annotated[
        bool, typer.Option("--natural", help="Let the model decide when an answer ends; --tokens and --audio-frames "
                           "are then upper limits.", rich_help_panel=_ASKED),
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
        MediaAs, typer.Option(help="Send media as content parts, or in the top-level lists 'images', 'audios' and "
                              "'videos'.", rich_help_panel=_ASKED)
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
        typer.Option(help="Requests to measure at each load; with --capacity, the minimum for each number of streams.",
                     min=1, rich_help_panel=_LOAD, show_default=f"{_REQUESTS}; with --capacity, {_CAPACITY_REQUESTS}"),
    ] = None,
    warmup: Annotated[
        int, typer.Option(help="Warm-up requests at each load, sent first and not counted.", min=0,
                          rich_help_panel=_LOAD)
    ] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the prompts and the arrival times.", rich_help_panel=_LOAD)] = 0,
    capacity: Annotated[
        bool, typer.Option("--capacity", help="Find by bisection how many streamed spoken answers the server can send "
                           "at once, so that they play without a gap.", rich_help_panel=_CAPACITY),
    ] = False,
    gapless_share: Annotated[
        float | None,
        typer.Option(help="Fraction of the answers that must play without a gap.", min=0.01, max=1.0,
                     rich_help_panel=_CAPACITY, show_default=str(_SHARE)),
    ] = None,
    max_streams: Annotated[
        int | None,
        typer.Option(help="Largest number of streams to try.", min=1, rich_help_panel=_CAPACITY,
                     show_default=str(_MOST)),
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Simulate spoken conversations over /v1/realtime. --concurrency is the "
                           "number of sessions. --media-dir contains the recordings that the simulated users speak. "
                           "--requests is the number of turns in all sessions together. --audio-frames fixes the "
                           "length of the answers.", rich_help_panel=_TALK),
    ] = False,
    interruptions: Annotated[
        float | None,
        typer.Option(help="Fraction of the answers that the simulated users interrupt.", min=0.0, max=1.0,
                     rich_help_panel=_TALK, show_default=str(_INTERRUPTED)),
    ] = None,
    silence_ms: Annotated[
        int | None,
        typer.Option(help="Length in ms of the silence that ends a turn. Each session sends this setting.", min=0,
                     max=10_000, rich_help_panel=_TALK, show_default=str(_SILENCE_MS)),
    ] = None,
    talk_speed: Annotated[
        float | None,
        typer.Option(help="Speed at which the simulated users speak and listen, as a multiple of real time.", min=0.1,
                     max=100.0, rich_help_panel=_TALK, show_default="1"),
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
        bool, typer.Option("--baseline", help="Also send the same requests to Hugging Face Transformers, "
                           "alternating with the server, and compare the speeds. Needs --model-path.",
                           rich_help_panel=_BASE),
    ] = False,
    model_path: Annotated[
        str | None,
        typer.Option(help="Checkpoint of the baseline.", metavar="DIR|NAME", rich_help_panel=_BASE, show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Measure any server that offers this API: latencies, continuity of speech, throughput."""
    # Imported in this function, so that other commands do not load the media decoders.
    from gateway.bench.display import ProgressBar, show
    from gateway.bench.plan import BenchPlan, CapacityGoal
    from gateway.bench.plot import draw
    from gateway.bench.report import Load
    from gateway.bench.run import run

    for file in filter(None, (json_file, plot)):
        if not file.parent.is_dir():
            raise typer.BadParameter(f"There is no directory {file.parent} to write {file.name} to.")
    if realtime:
        _refuse(
            "--realtime, which simulates spoken conversations",
            {
                "--capacity": capacity,
                "--rate": rate is not None,
                f"--input {input_}": input_ is not Input.TEXT,
                f"--output {output}": output is not None,
                "--baseline": baseline,
                "--plot": plot is not None,
            },
        )
        from gateway.bench.talk.run import TalkPlan
        from gateway.bench.talk.session import TalkSettings

        settings = TalkSettings(
            url=url, model=model or "", api_key=api_key, voice=voice, timeout=timeout, speed=talk_speed or 1.0,
            silence_ms=_SILENCE_MS if silence_ms is None else silence_ms,
            lengths=None if audio_frames is None else (tokens, audio_frames),
        )  # fmt: skip
        talk = TalkPlan(
            settings=settings, sessions=concurrency or [1], turns=requests or _REQUESTS, warmup=warmup, seed=seed,
            media_dir=media_dir, interrupted_share=_INTERRUPTED if interruptions is None else interruptions,
        )  # fmt: skip
        _hold_conversations(talk, json_file)
        return
    for flag, given in (("--interruptions", interruptions), ("--silence-ms", silence_ms), ("--talk-speed", talk_speed)):
        if given is not None:
            raise typer.BadParameter(f"{flag} applies only to spoken conversations: add --realtime.")
    if capacity:
        _refuse(
            "--capacity, which chooses the number of streams itself, and measures streamed spoken answers",
            {
                "--rate": rate is not None,
                "--concurrency": concurrency is not None,
                f"--output {output}": output not in (None, Output.SPEECH),
                "--baseline": baseline,
            },
        )
    elif gapless_share is not None or max_streams is not None:
        flag = "--max-streams" if gapless_share is None else "--gapless-share"
        raise typer.BadParameter(f"{flag} applies only to the search for the capacity: add --capacity.")
    if output is None:
        output = Output.SPEECH if capacity else Output.TEXT
    if baseline != (model_path is not None):
        raise typer.BadParameter("--baseline and --model-path must be given together.")
    if baseline and rate:
        raise typer.BadParameter(
            "--baseline does not work with --rate, because the server and the baseline answer in turns; use "
            "--concurrency."
        )
    if baseline and output is Output.MIXED:
        raise typer.BadParameter("--baseline does not work with --output mixed: compare one kind of answer at a time.")
    if plot is not None and plot.suffix != ".svg":
        raise typer.BadParameter(f"--plot writes SVG: use the file name {plot.with_suffix('.svg')}.")
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
    _write(report, json_file)
    if plot is not None:
        plot.write_text(draw(report))
    if not any(level.completed for level in report.levels):
        raise StartupError("No request was answered.")


def _hold_conversations(plan: TalkPlan, json_file: Path | None) -> None:
    from gateway.bench.display import ProgressBar
    from gateway.bench.talk.display import show_talk
    from gateway.bench.talk.run import run_talk

    with ProgressBar(Console(stderr=True)) as progress:
        report = asyncio.run(run_talk(plan, progress))
    show_talk(report, Console())
    _write(report, json_file)
    if not any(level.answered for level in report.levels):
        raise StartupError("No turn was answered.")


def _refuse(mode: str, given: Mapping[str, bool]) -> None:
    """Refuse flags that contradict a mode.

    Args:
        mode: The flag of the mode, and a short explanation of the mode.
        given: The flags that contradict the mode. The value of a flag says whether the flag was given.
    """
    for flag, present in given.items():
        if present:
            raise typer.BadParameter(f"{flag} does not work with {mode}.")


def _write(report: msgspec.Struct, file: Path | None) -> None:
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
