"""`sgl-omni config`: shows and checks a configuration, and lists layouts and possible settings."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from omni_pipeline import gpus
from omni_pipeline.commands.config_view import explain, render
from omni_pipeline.commands.options import takes_settings
from omni_pipeline.config import layout_files
from omni_pipeline.config.json_schema import json_schema
from omni_pipeline.config.layers import Settings
from omni_pipeline.config.schema import Config
from omni_pipeline.contract.graph import load_graph
from omni_pipeline.deployment.checkpoint import describe_checkpoint, find_checkpoint
from omni_pipeline.deployment.prepare import FreeMemory, free_memory, prepare
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.kernels import toolchain

app = typer.Typer(
    no_args_is_help=True, help="Show, check and describe configurations, and list layouts.",
    rich_markup_mode="rich",
)  # fmt: skip

Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        help="Plan for these GPUs instead of this machine's. Examples: 1xH100-80GB or 4x24GB or H20-96GB,L4-24GB.",
        metavar="GPUS",
        show_default=False,
    ),
]


@app.command()
@takes_settings
def show(
    settings: Settings,
    gpus: Gpus = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list of path, value and origin instead of YAML.")
    ] = False,
) -> None:
    """Print the resolved configuration as YAML, with the source of each value that is not a default.

    Accepts the flags of serve. The output can be used as a configuration file. If the model path is a directory with
    config.json, the output shows how GPU memory would be divided.
    """
    lines = explain(settings, _divided(resolved(settings, gpus), gpus))
    if as_json:
        print(json.dumps([msgspec.to_builtins(line) for line in lines], indent=1))
    else:
        Console().print(render(lines), markup=False, highlight=False, soft_wrap=True)


@app.command()
@takes_settings
def check(settings: Settings, gpus: Gpus = None) -> None:
    """Check that the configuration can work, and show where each stage runs.

    Accepts the flags of serve. A checkpoint is checked too if the model path is a directory. If the configuration
    cannot work, prints the reason and exits with code 1.
    """
    deployment = resolved(settings, gpus)
    if gpus is None:
        toolchain.check(deployment.workers)
    console = Console()
    spec = deployment.graph.checkpoint
    if spec is not None and os.path.isdir(deployment.model_path):
        found = find_checkpoint(deployment.model_path, spec, console.print)
        prepare(deployment, found, free_for(deployment, gpus)).refuse()
        told = "complete, and it fits"
    else:
        told = "not here, and not checked"
    notes = [*deployment.notes, *toolchain.notes(deployment.workers)]
    for line in (*describe_workers(deployment), *map(escape, notes)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"[green]The configuration is valid[/]; the checkpoint {escape(deployment.model_path)} is {told}.",
                  highlight=False, soft_wrap=True)  # fmt: skip


@app.command("list")
def list_layouts(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of name, purpose and path.")] = False,
) -> None:
    """Print the layouts that ship with this package, each with its name for --config, its purpose and its file."""
    shipped = layout_files.layouts()
    if as_json:
        print(json.dumps(msgspec.to_builtins(shipped, enc_hook=str), indent=1))
        return
    width = max((len(layout.name) for layout in shipped), default=0)
    for layout in shipped:
        print(f"{layout.name:<{width}}  {layout.purpose}\n{'':<{width}}  {layout.path}")


@app.command()
def schema() -> None:
    """Print the JSON schema of configuration files, for editors and checkers."""
    print(json.dumps(json_schema(load_graph(Config().graph)), indent=2))


def resolved(settings: Settings, description: str | None) -> Deployment:
    """The deployment of `settings` on the described GPUs or, without a description, on this machine's GPUs. Prints
    notes to stderr.
    """
    for note in settings.notes:
        print(note, file=sys.stderr)
    return resolve(settings.config, gpus.parse(description) if description is not None else None)


def free_for(deployment: Deployment, description: str | None) -> FreeMemory:
    """The memory that a deployment may use: the free memory of this machine's GPUs, or all memory of the described
    GPUs.
    """
    return free_memory(deployment.gpus if description is None else ())


def _divided(deployment: Deployment, description: str | None) -> Deployment:
    """The deployment with its memory divided, if it uses GPUs and the checkpoint's ``config.json`` is there."""
    spec = deployment.graph.checkpoint
    if spec is None or not deployment.gpus or not os.path.isfile(os.path.join(deployment.model_path, "config.json")):
        return deployment
    found = describe_checkpoint(deployment.model_path, spec)
    return prepare(deployment, found, free_for(deployment, description), checked=False).sized()


def describe_workers(deployment: Deployment) -> list[str]:
    """One line of text for each worker, with its device and its stages."""
    names = {gpu.device: f"GPU {gpu.index} ({gpu.name})" for gpu in deployment.gpus}
    width = max(len(worker.name) for worker in deployment.workers)
    return [
        f"{escape(worker.name):<{width}}  {', '.join(names[gpu] for gpu in worker.gpus) or 'CPU'}: "
        f"{', '.join(worker.stage_names)}"
        for worker in deployment.workers
    ]
