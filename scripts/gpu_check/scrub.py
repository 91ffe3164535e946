"""Removes private data from a report: home directories, user and host names, keys."""

from __future__ import annotations

import getpass
import os
import re
import socket
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

_REMOVED = "[removed]"
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
_SECRETS = re.compile(
    r"\b(?:sk|hf|ghp|gho|ghs|glpat|xox[abp])[-_][A-Za-z0-9_-]{8,}|\bAKIA[A-Z0-9]{12,}"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{8,}"
)
_LOGIN = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_HOMES = re.compile(r"(?:/home|/Users)/[^/\s'\"`:]+|(?<![\w/.-])/root(?=[/\s'\"`:]|$)")
_COMMON = {"localhost", "root", "user", "ubuntu", "runner"}  # generic names that also occur as ordinary words


def scrub(text: str) -> str:
    """The text without private data, so that it can be published."""
    return clean(text, _known())


def clean(text: str, known: Mapping[str, str]) -> str:
    """The text without the `known` strings, and without anything that looks like a key, a login or a home directory."""
    for private, public in known.items():
        text = re.sub(rf"(?<![\w-]){re.escape(private)}(?![\w-])", public, text)
    text = _SECRETS.sub(_REMOVED, text)
    text = _LOGIN.sub(_REMOVED, text)
    return _HOMES.sub("~", text)


@cache
def _known() -> dict[str, str]:
    return known(os.environ, (socket.gethostname(), socket.getfqdn()), getpass.getuser())


def known(environment: Mapping[str, str], hosts: tuple[str, ...], user: str) -> dict[str, str]:
    """Private strings of this machine and process, each with its replacement, in the order of falling length."""
    found = {str(ROOT): ".", str(Path.home()): "~", tempfile.gettempdir(): "TMP"}
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            found[value] = _REMOVED
    found |= {host: "HOST" for host in hosts if len(host) > 2 and host not in _COMMON}
    if len(user) > 2 and user not in _COMMON:
        found[user] = "USER"
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))
