"""The command line, `sgl-omni`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import sys

import typer
from rich.console import Console
from rich.markup import escape

from omni_pipeline import __version__, logs
from omni_pipeline.commands import config
from omni_pipeline.commands.invite import invite
from omni_pipeline.commands.join import join
from omni_pipeline.commands.options import takes_settings
from omni_pipeline.commands.plan import plan
from omni_pipeline.commands.scale import scale
from omni_pipeline.commands.simulate import simulate
from omni_pipeline.commands.start_log import LogDisplay
from omni_pipeline.commands.start_terminal import Terminal
from omni_pipeline.config.layers import Settings
from omni_pipeline.contract.graph import load_object
from omni_pipeline.deployment.text_only import fitted
from omni_pipeline.errors import StartupError
from omni_pipeline.service import Display
from omni_pipeline.service import serve as serve_config

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Serve Qwen3-Omni models over an OpenAI-compatible API: text, images, sound and video in requests; "
    "text and speech in answers.",
    pretty_exceptions_enable=False,
)


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "A checkpoint directory, on the CPU if there is no GPU:\n\n"
    "[cyan]sgl-omni serve --model-path /models/Qwen3-Omni-30B-A3B-Instruct --text-only --port 8008[/]\n\n"
    "Text and speech on one H100, with a layout that ships with this package:\n\n"
    "[cyan]sgl-omni serve --model-path … --config colocated-h100[/]\n\n"
    "The thinker on two GPUs, speech on a third, and a setting that has no flag:\n\n"
    "[cyan]sgl-omni serve --model-path … --gpu-thinker 0,1 --gpu-talker 2 --gpu-code-predictor 2 --gpu-code2wav 2 "
    "--set thinker.engine.chunked_prefill_size=2048[/]\n\n"
    "Each flag also has an environment variable: SGL_OMNI_MODEL_PATH for --model-path, and so on (but "
    "SGL_OMNI_LISTEN_PORT for --port). Precedence, highest first: --set, flags, environment, file, defaults. "
    "[cyan]sgl-omni config show[/] with the same flags shows the source of each value.",
)
@takes_settings
def serve(settings: Settings) -> None:
    """Load a model and answer requests until Ctrl-C or SIGTERM stops the server."""
    config = settings.config
    logs.configure("main", config.log_level.upper(), config.log_format)
    try:
        if config.log_format == "json":
            _serve(settings, LogDisplay())
        else:
            with Terminal(Console()) as terminal:
                _serve(settings, terminal)
    except asyncio.CancelledError:  # the second signal to stop causes this exception
        raise typer.Exit(1) from None
    except StartupError as error:
        if config.log_format != "json":
            raise
        logging.getLogger("omni_pipeline.start").critical("cannot start: %s", error)
        raise typer.Exit(1) from None


def _serve(settings: Settings, display: Display) -> None:
    settings = fitted(settings, download=True)
    for note in settings.notes:
        display.note(note)
    asyncio.run(serve_config(settings.config, display))


@app.command()
def version() -> None:
    """Print the versions of this package and of the libraries that its results depend on."""
    print(f"omni-pipeline {__version__}")
    for package in ("sglang", "torch", "transformers"):
        try:
            print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed")


app.command()(plan)
app.command()(simulate)
app.command()(scale)
app.command()(invite)
app.command()(join)
app.add_typer(config.app, name="config")

# `bench` is a client of the gateway's API, so its code is in the gateway. The code is loaded by name at run time, so
# that no module of the framework imports the gateway.
app.command()(load_object("gateway.bench.command:bench"))


def main() -> None:
    """Entry point of the console script. Prints a `StartupError` as one line, without a traceback."""
    try:
        app()
    except StartupError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
