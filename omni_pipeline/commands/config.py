"""`sgl-omni config`: what a configuration comes to, whether it can work, and what may be in it."""

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
    no_args_is_help=True, help="Show, check and describe configurations, and list those that ship.",
    rich_markup_mode="rich",
)  # fmt: skip

Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        help="Reckon with these GPUs instead of this machine's: 1xH100-80GB, 4x24GB, H20-96GB,L4-24GB.",
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
    """Print the resolved configuration as YAML, and beside each value that is no default where it came from.

    Takes the flags of serve. What it prints can be used as a file. Where the checkpoint's config.json is here, GPU
    memory is divided as it would be at the start.
    """
    lines = explain(settings, _divided(resolved(settings, gpus), gpus))
    if as_json:
        print(json.dumps([msgspec.to_builtins(line) for line in lines], indent=1))
    else:
        Console().print(render(lines), markup=False, highlight=False, soft_wrap=True)


@app.command()
@takes_settings
def check(settings: Settings, gpus: Gpus = None) -> None:
    """Say whether the configuration can work, and who runs where; ends with 1 and the reason if it cannot.

    Takes the flags of serve. A checkpoint that is a directory here is checked too.
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
    """Print the layouts that ship with this package: the name for --config, what it is for, and the file."""
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
    """The deployment of `settings` on the GPUs described, or those of this machine. Notes go to standard error."""
    for note in settings.notes:
        print(note, file=sys.stderr)
    return resolve(settings.config, gpus.parse(description) if description is not None else None)


def free_for(deployment: Deployment, description: str | None) -> FreeMemory:
    """What is free for a deployment: on this machine's GPUs what other programs leave, on GPUs described all."""
    return free_memory(deployment.gpus if description is None else ())


def _divided(deployment: Deployment, description: str | None) -> Deployment:
    """The deployment with its memory divided, if it is on GPUs and anything is known of the checkpoint."""
    spec = deployment.graph.checkpoint
    if spec is None or not deployment.gpus or not os.path.isfile(os.path.join(deployment.model_path, "config.json")):
        return deployment
    found = describe_checkpoint(deployment.model_path, spec)
    return prepare(deployment, found, free_for(deployment, description), checked=False).sized()


def describe_workers(deployment: Deployment) -> list[str]:
    """A line for each worker: where it is, and what it runs."""
    names = {gpu.device: f"GPU {gpu.index} ({gpu.name})" for gpu in deployment.gpus}
    width = max(len(worker.name) for worker in deployment.workers)
    return [
        f"{escape(worker.name):<{width}}  {', '.join(names[gpu] for gpu in worker.gpus) or 'CPU'}: "
        f"{', '.join(worker.stage_names)}"
        for worker in deployment.workers
    ]
