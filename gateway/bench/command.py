"""The flags of `sgl-omni bench`."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from gateway.bench.media import COMMITTED
from gateway.bench.scenarios import Input, MediaAs, Output, Scenario
from omni_pipeline.errors import StartupError

_SERVER, _ASKED, _LOAD, _RESULT, _BASE = "Server", "What is asked", "How much", "Results", "Baseline"
_FRAMES = 60


class AudioFormat(StrEnum):
    """Choices of ``--audio-format``: those whose chunks have a known length on arrival."""

    WAV = "wav"
    PCM16 = "pcm16"


def bench(
    url: Annotated[
        str, typer.Option(help="Of the server.", metavar="URL", rich_help_panel=_SERVER)
    ] = "http://127.0.0.1:8008",
    model: Annotated[
        str | None,
        typer.Option(help="Name in the requests.", metavar="NAME", rich_help_panel=_SERVER,
                     show_default="the first that the server lists"),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Sent as bearer token.", metavar="KEY", envvar="SGL_OMNI_API_KEY", rich_help_panel=_SERVER,
                     show_default=False),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds for one request.", min=0.1, rich_help_panel=_SERVER)
    ] = 600.0,
    input_: Annotated[
        Input, typer.Option("--input", help="What a request carries besides words; mixed is one of each.",
                            rich_help_panel=_ASKED),
    ] = Input.TEXT,
    output: Annotated[Output, typer.Option(help="What is asked for.", rich_help_panel=_ASKED)] = Output.TEXT,
    prompt_words: Annotated[int, typer.Option(help="Words of each prompt.", min=1, rich_help_panel=_ASKED)] = 64,
    tokens: Annotated[
        int, typer.Option(help="Text tokens of each answer: exactly so many, with ignore_eos.", min=1,
                          rich_help_panel=_ASKED),
    ] = 64,
    audio_frames: Annotated[
        int | None,
        typer.Option(help="Codec frames of speech, 80 ms each: exactly so many.", min=1, rich_help_panel=_ASKED,
                     show_default=f"{_FRAMES}; with --natural the server's limit"),
    ] = None,
    natural: Annotated[
        bool, typer.Option("--natural", help="Let answers end by themselves; lengths are then limits.",
                           rich_help_panel=_ASKED),
    ] = False,
    voice: Annotated[
        str | None,
        typer.Option(help="Who speaks.", metavar="NAME", rich_help_panel=_ASKED, show_default="the server's default"),
    ] = None,
    audio_format: Annotated[
        AudioFormat, typer.Option(help="Of streamed speech.", rich_help_panel=_ASKED)
    ] = AudioFormat.WAV,
    media_dir: Annotated[
        Path, typer.Option(help="Where pictures, sounds and clips are taken from.", metavar="DIR",
                           rich_help_panel=_ASKED, show_default="tests/data here, as in a checkout"),
    ] = COMMITTED,
    media_as: Annotated[
        MediaAs, typer.Option(help="Content parts, or top-level images, audios, videos.", rich_help_panel=_ASKED)
    ] = MediaAs.PARTS,
    same_media: Annotated[
        bool, typer.Option("--same-media", help="Send the same media each time, so that caches may answer.",
                           rich_help_panel=_ASKED),
    ] = False,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(help="Requests in flight: the next is sent when one is answered. Repeatable.", min=1,
                     rich_help_panel=_LOAD, show_default="1"),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Requests a second, at random (Poisson) times. Repeatable.", min=0.001,
                     rich_help_panel=_LOAD, show_default=False),
    ] = None,
    requests: Annotated[
        int, typer.Option(help="Measured at each load.", min=1, rich_help_panel=_LOAD)
    ] = 32,
    warmup: Annotated[
        int, typer.Option(help="Sent before them at each load and not counted.", min=0, rich_help_panel=_LOAD)
    ] = 2,
    seed: Annotated[int, typer.Option(help="Of prompts and arrival times.", rich_help_panel=_LOAD)] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write all figures here.", metavar="FILE", dir_okay=False, rich_help_panel=_RESULT,
                     show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw them here, as SVG.", metavar="FILE.svg", dir_okay=False, rich_help_panel=_RESULT,
                     show_default=False),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Answer the same requests with Hugging Face too, in turns with the "
                           "server, and compare. Needs --model-path.", rich_help_panel=_BASE),
    ] = False,
    model_path: Annotated[
        str | None,
        typer.Option(help="Checkpoint of the baseline.", metavar="DIR|NAME", rich_help_panel=_BASE, show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Measure a server of this API, this one or a peer's: latencies, steadiness of speech, throughput."""
    # Imported here, so that the other commands do not load what decodes media.
    from gateway.bench.display import ProgressBar, show
    from gateway.bench.plot import draw
    from gateway.bench.report import Load
    from gateway.bench.run import BenchPlan, run

    if baseline != (model_path is not None):
        raise typer.BadParameter("--baseline and --model-path go together.")
    if baseline and rate:
        raise typer.BadParameter("--baseline compares answers in turns, which --rate has no room for.")
    if plot is not None and plot.suffix != ".svg":
        raise typer.BadParameter(f"--plot draws SVG: call it {plot.with_suffix('.svg')}.")
    for file in filter(None, (json_file, plot)):
        if not file.parent.is_dir():
            raise typer.BadParameter(f"There is no directory {file.parent} to write {file.name} to.")
    if output is Output.SPEECH and not natural and audio_frames is None:
        audio_frames = _FRAMES
    loads = [Load(concurrency=streams) for streams in concurrency or ([] if rate else [1])]
    loads += [Load(rate=per_second) for per_second in rate or []]
    scenario = Scenario(
        input=input_, output=output, prompt_words=prompt_words, tokens=tokens, audio_frames=audio_frames,
        natural=natural, same_media=same_media, voice=voice, audio_format=audio_format.value, media_as=media_as,
    )  # fmt: skip
    plan = BenchPlan(
        url=url, model=model, api_key=api_key, scenario=scenario, loads=loads, requests=requests, warmup=warmup,
        seed=seed, timeout=timeout, media_dir=media_dir, baseline=model_path,
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
