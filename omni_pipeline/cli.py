"""The command line, `sgl-omni`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from omni_pipeline import __version__
from omni_pipeline.config import load
from omni_pipeline.errors import StartupError
from omni_pipeline.graph import load_object
from omni_pipeline.service import serve as serve_config
from omni_pipeline.terminal import Terminal

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Serve Qwen3-Omni models: text, images, audio and video in, text out, over an OpenAI-compatible API.",
    pretty_exceptions_enable=False,
)

_MODEL, _NETWORK, _MEDIA, _RUN = "Model", "Network", "Media the server may read", "How it runs"


class Device(StrEnum):
    """Choices of ``--device``."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class LogLevel(StrEnum):
    """Choices of ``--log-level``."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "A checkpoint directory, on the CPU if there is no GPU:\n\n"
    "[cyan]sgl-omni serve --model-path checkpoints/tiny --text-only --port 8008[/]\n\n"
    "All stages in one process, for many short requests:\n\n"
    "[cyan]sgl-omni serve --model-path … --config configs/qwen3_omni_mmsu.yaml --text-only --port 8008[/]",
)
def serve(
    model_path: Annotated[
        str | None,
        typer.Option(help="Checkpoint directory or hub name. Required unless the configuration names it.",
                     metavar="DIR|NAME", rich_help_panel=_MODEL, show_default=False),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(help="Name in /v1/models.", metavar="NAME", rich_help_panel=_MODEL,
                     show_default="last part of the model path"),
    ] = None,
    text_only: Annotated[
        bool | None,
        typer.Option("--text-only", help="Leave the speech stages out.", rich_help_panel=_MODEL, show_default="off"),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; 0.0.0.0 for every interface.", metavar="ADDRESS",
                     rich_help_panel=_NETWORK, show_default="127.0.0.1"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port to listen on; 0 takes a free one.", metavar="PORT", min=0, max=65535,
                     rich_help_panel=_NETWORK, show_default="8000"),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Require one of these as bearer token. Repeatable.", metavar="KEY", envvar="SGL_OMNI_API_KEY",
                     rich_help_panel=_NETWORK, show_default="open to everyone", show_envvar=True),
    ] = None,
    allowed_local_media_path: Annotated[
        str | None,
        typer.Option(help="Directory that local media paths must be in; an empty string forbids local files.",
                     metavar="DIR", rich_help_panel=_MEDIA, show_default="current directory"),
    ] = None,
    allowed_media_domain: Annotated[
        list[str] | None,
        typer.Option(help="Only fetch from these hosts (example.org, 10.0.0.5:9000). Repeatable. A listed host "
                     "may have a private address.", metavar="HOST", rich_help_panel=_MEDIA,
                     show_default="any public host"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with any of these settings and more, see configs/. Flags win over it.",
                     metavar="FILE", rich_help_panel=_RUN, show_default=False),
    ] = None,
    device: Annotated[
        Device | None,
        typer.Option(help="Where the model computes; auto takes a GPU if there is one.", rich_help_panel=_RUN,
                     show_default="auto"),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(help="Of the main process and the workers.", rich_help_panel=_RUN, show_default="info"),
    ] = None,
) -> None:  # fmt: skip
    """Load a model and answer requests until stopped with Ctrl-C or SIGTERM."""
    overrides = _given(
        model_path=model_path,
        text_only=text_only,
        device=device and device.value,
        log_level=log_level and log_level.value,
        server=_given(
            model_name=model_name,
            host=host,
            port=port,
            api_keys=api_key or None,
            media=_given(local_path=allowed_local_media_path, allowed_domains=allowed_media_domain or None) or None,
        )
        or None,
    )
    settings = load(config, overrides)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s main %(name)s: %(message)s")
    try:
        with Terminal(Console()) as terminal:
            asyncio.run(serve_config(settings, terminal))
    except asyncio.CancelledError:  # told twice to stop
        raise typer.Exit(1) from None


@app.command()
def version() -> None:
    """Print the versions of this package and of those that decide its results."""
    print(f"omni-pipeline {__version__}")
    for package in ("sglang", "torch", "transformers"):
        try:
            print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed")


# A client of the gateway's API, so it lives there; named, so that the framework imports no gateway.
app.command()(load_object("gateway.bench.command:bench"))


def _given(**settings: Any) -> dict[str, Any]:
    """Those settings that were given on the command line."""
    return {name: value for name, value in settings.items() if value is not None}


def main() -> None:
    """Entry of the console script. What keeps a command from its work is told in one line."""
    try:
        app()
    except StartupError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
