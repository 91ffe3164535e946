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

from omni_pipeline.commands.config_view import explain, render
from omni_pipeline.commands.options import takes_settings
from omni_pipeline.config import layout_files
from omni_pipeline.config.json_schema import json_schema
from omni_pipeline.config.layers import Settings
from omni_pipeline.config.schema import Config
from omni_pipeline.contract.graph import load_graph
from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.deployment.checkpoint import describe_checkpoint, find_checkpoint
from omni_pipeline.deployment.host_descriptions import DescribedHardware, described
from omni_pipeline.deployment.prepare import FreeMemory, free_memory, prepare
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.deployment.text_only import fitted
from omni_pipeline.kernels import toolchain

app = typer.Typer(
    no_args_is_help=True, help="Show, check and describe configurations, and list layouts.",
    rich_markup_mode="rich",
)  # fmt: skip

Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        help="Plan for these GPUs instead of the GPUs of this machine. Examples: 1xH100-80GB or 4x24GB or "
        "H20-96GB,L4-24GB.",
        metavar="GPUS",
        show_default=False,
    ),
]

Hosts = Annotated[
    str | None,
    typer.Option(
        "--hosts",
        help="Plan for hosts with these GPUs, such as main=2xH100-80GB,b=1xH100-80GB,c=cpu. 'main' is the host of "
        "this server; the setting 'hosts' must contain the other names. To set the RAM of a host, add the size to its "
        "GPUs, as in b=1xH100-80GB,RAM-256GiB.",
        metavar="HOST=GPUS,…",
        show_default=False,
    ),
]


@app.command()
@takes_settings
def show(
    settings: Settings,
    gpus: Gpus = None,
    hosts: Hosts = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of path, value and source instead of YAML.")
    ] = False,
) -> None:
    """Print the resolved configuration as YAML, with the source of each value that is not a default.

    Accepts the flags of serve. You can use the output as a configuration file. If the model path is a directory with
    config.json, the output shows how the server would divide the memory of GPUs. If there are several hosts, the memory
    is not shown here, because it differs between hosts: use sgl-omni plan.
    """
    settings = fitted(settings)
    hardware = described(gpus, hosts, settings.config)
    lines = explain(settings, _divided(resolved(settings, hardware), hardware))
    if as_json:
        print(json.dumps([msgspec.to_builtins(line) for line in lines], indent=1))
    else:
        Console().print(render(lines), markup=False, highlight=False, soft_wrap=True)


@app.command()
@takes_settings
def check(settings: Settings, gpus: Gpus = None, hosts: Hosts = None) -> None:
    """Check that the configuration can work, and show where each stage runs.

    Accepts the flags of serve. If the model path is a directory, the checkpoint is checked too. If the configuration
    cannot work, prints the reason and exits with code 1.
    """
    settings = fitted(settings)
    hardware = described(gpus, hosts, settings.config)
    deployment = resolved(settings, hardware)
    own = deployment.workers_on("")
    if hardware.gpus is None:
        toolchain.check(own)
    console = Console()
    spec = deployment.graph.checkpoint
    if spec is not None and os.path.isdir(deployment.model_path):
        found = find_checkpoint(deployment.model_path, spec, console.print)
        prepare(deployment, found, free_for(deployment, hardware)).refuse()
        memory = "the memory of the hosts whose hardware is known" if deployment.unknown_hosts else "memory"
        told = f"complete and fits into {memory}"
    else:
        told = "not a directory on this machine, so it was not checked"
    notes = [*deployment.notes, *toolchain.notes(own), *unknown_notes(deployment)]
    for line in (*describe_workers(deployment), *map(escape, notes)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"[green]The configuration is valid[/]; the checkpoint {escape(deployment.model_path)} is {told}.",
                  highlight=False, soft_wrap=True)  # fmt: skip


@app.command("list")
def list_layouts(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the name, purpose and path of each layout as JSON.")
    ] = False,
) -> None:
    """Print the layouts that this package contains. For each layout, print its name for --config, its purpose and its
    file.
    """
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


def resolved(settings: Settings, hardware: DescribedHardware) -> Deployment:
    """The deployment of `settings` on the described hardware. Prints notes to stderr."""
    for note in settings.notes:
        print(note, file=sys.stderr)
    return resolve(settings.config, hardware.gpus, hardware.hosts)


def free_for(deployment: Deployment, hardware: DescribedHardware) -> FreeMemory:
    """The memory that a deployment may use: the free memory of this machine's GPUs, and all memory of described
    GPUs.
    """
    free = free_memory(deployment.gpus if hardware.gpus is None else (), hardware.hosts)
    return free if hardware.ram is None else msgspec.structs.replace(free, ram=hardware.ram)


def unknown_notes(deployment: Deployment) -> tuple[str, ...]:
    """A remark on the hosts whose hardware is unknown."""
    names = deployment.unknown_hosts
    if not names:
        return ()
    example = ",".join(f"{name}=1xH100-80GB" for name in names)
    return (
        f"The hardware of {' and '.join(names)} is unknown until "
        f"{'these hosts join' if len(names) > 1 else 'this host joins'}. To plan now, describe this hardware with "
        f"--hosts, as in --hosts {example}.",
    )


def _divided(deployment: Deployment, hardware: DescribedHardware) -> Deployment:
    """Returns `deployment`. If the deployment uses GPUs, has one host and the checkpoint has a ``config.json``, the
    result also has a memory size for each stage.
    """
    spec = deployment.graph.checkpoint
    if (
        spec is None
        or not deployment.gpus
        or deployment.hosts
        or not os.path.isfile(os.path.join(deployment.model_path, "config.json"))
    ):
        return deployment
    found = describe_checkpoint(deployment.model_path, spec)
    return prepare(deployment, found, free_for(deployment, hardware), checked=False).sized()


def describe_workers(deployment: Deployment) -> list[str]:
    """One line of text for each worker, with its device and its stages."""
    names = {(gpu.host, gpu.device): gpu.label for gpu in deployment.gpus}
    width = max(len(worker.name) for worker in deployment.workers)
    return [
        f"{escape(worker.name):<{width}}  "
        f"{', '.join(names[worker.host, gpu] for gpu in worker.gpus) or _place(worker, deployment)}: "
        f"{', '.join(worker.stage_names)}{' (not started until sgl-omni scale adds it)' if worker.spare else ''}"
        for worker in deployment.workers
    ]


def _place(worker: WorkerPlan, deployment: Deployment) -> str:
    """The place of a worker whose plan has no GPU, as text. If the hardware of the worker's host is unknown, the text
    leaves open whether the worker will use a CPU or a GPU.
    """
    if worker.host in deployment.unknown_hosts:
        return f"a device of {worker.host}"
    return f"CPU of {worker.host}" if worker.host else "CPU"
