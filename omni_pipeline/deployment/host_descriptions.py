"""Parses descriptions of the hardware of hosts, for plans that are made elsewhere."""

from __future__ import annotations

from msgspec import Struct

from omni_pipeline.config.schema import MAIN_HOST, Config
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.errors import StartupError, suggestion
from omni_pipeline.gpus import Gpu, parse
from omni_pipeline.sizes import parse_size

_CPU, _RAM = "cpu", "RAM-"


class DescribedHardware(Struct, frozen=True):
    """The hardware for which a plan is made.

    Attributes:
        gpus: The GPUs of the main host; None for the GPUs of this machine.
        ram: Bytes of the main host's RAM; None for the free RAM of this machine.
        hosts: The facts of the other hosts, by the host's name.
    """

    gpus: tuple[Gpu, ...] | None = None
    ram: int | None = None
    hosts: dict[str, HostFacts] = {}


def described(gpus: str | None, hosts: str | None, config: Config) -> DescribedHardware:
    """The hardware that the options ``--gpus`` and ``--hosts`` describe.

    Raises:
        StartupError: a description cannot be understood, or contradicts the configuration or the other description.
    """
    facts = parse_hosts(hosts) if hosts is not None else {}
    for name in facts:
        if name != MAIN_HOST and name not in config.hosts:
            hint = suggestion(name, (MAIN_HOST, *config.hosts))
            raise StartupError(f"--hosts {name}: there is no host {name} in the setting 'hosts'; {hint}")
    main = facts.pop(MAIN_HOST, None)
    if main is not None and gpus is not None:
        raise StartupError(f"--hosts and --gpus both describe {MAIN_HOST}; leave one of the two descriptions out.")
    if main is not None:
        return DescribedHardware(main.gpus, main.ram, facts)
    return DescribedHardware(parse(gpus) if gpus is not None else None, None, facts)


def parse_hosts(text: str) -> dict[str, HostFacts]:
    """Maps the name of each described host to its GPUs and its RAM.

    An example of `text` is ``main=2xH100-80GB,b=L4-24GB,L4-24GB,RAM-256GiB,c=cpu``. `gpus.parse` explains how the GPUs
    of a host are written. ``RAM-256GiB`` sets the size of the host's RAM. Without this part, the RAM of the host has no
    limit. ``cpu`` describes a host without GPUs.

    Raises:
        StartupError: the description cannot be understood.
    """
    parts: dict[str, list[str]] = {}
    name = ""
    for part in map(str.strip, text.split(",")):
        before, equals, after = (word.strip() for word in part.partition("="))
        if equals:
            name, part = before, after
            if name in parts:
                raise StartupError(f"--hosts {text}: {name} is described twice.")
            parts[name] = []
        if not (name and part):
            raise StartupError(f"--hosts {text}: write each host as NAME=GPUS, as in main=2xH100-80GB,b=cpu.")
        parts[name].append(part)
    return {name: _facts(name, words) for name, words in parts.items()}


def _facts(name: str, words: list[str]) -> HostFacts:
    sizes = [word.removeprefix(_RAM) for word in words if word.startswith(_RAM)]
    cards = [word for word in words if not word.startswith(_RAM) and word != _CPU]
    if len(sizes) > 1 or (_CPU in words and cards):
        raise StartupError(
            f"--hosts {name}={','.join(words)}: write GPUs or cpu, but not both; write the RAM only once."
        )
    try:
        ram = parse_size(sizes[0]) if sizes else None
    except ValueError as error:
        raise StartupError(
            f"--hosts {name}: {_RAM}{sizes[0]} is not a size of RAM; write a size such as RAM-256GiB."
        ) from error
    return HostFacts(parse(",".join(cards)) if cards else (), ram)
