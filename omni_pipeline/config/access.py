"""Refuses settings that seem to protect the server but do not protect it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from msgspec import structs

from omni_pipeline.config.schema import Server
from omni_pipeline.errors import StartupError, suggestion

# The prefix of the environment variables of flags.
PREFIX = "SGL_OMNI_"

_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+/?", re.IGNORECASE)
# Variables that Kubernetes sets in every container for services whose names begin with "sgl-omni".
_OF_SERVICES = re.compile(r"SGL_OMNI_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_\w+)?)")


def check(server: Server, source: str) -> None:
    """Refuse settings that seem to protect the server but do not protect it.

    Args:
        source: The beginning of error messages.

    Raises:
        StartupError: an API key is empty or cannot be sent in a header, the directory of local media files is `/`, or a
            value is not a valid host or origin.
    """
    for key in server.api_keys:
        if not key or key != key.strip() or not key.isprintable():
            problem = "is empty" if not key.strip() else "begins or ends with white space, or has a control character"
            raise StartupError(f"{source}server.api_keys: an API key {problem}, so it cannot identify a client.")
    root = server.media.local_path
    if root and os.path.realpath(root) == "/":
        raise StartupError(
            f"{source}server.media.local_path: {root} would allow clients to read every file of this machine; "
            "name the directory of the media files, or an empty string to forbid local files."
        )
    for domain in server.media.allowed_domains:
        if not domain.strip():
            raise StartupError(f"{source}server.media.allowed_domains: an entry is empty; write a host in each entry.")
    for host in server.allowed_hosts:
        if not _HOST.fullmatch(host):
            raise StartupError(
                f"{source}server.allowed_hosts: {host!r} is not a host name; write a name without scheme and port, as "
                "in gpu1.example.org, *.example.org, or * for all names."
            )
    for origin in server.allowed_origins:
        if not _ORIGIN.fullmatch(origin):
            raise StartupError(
                f"{source}server.allowed_origins: {origin!r} is not an origin; write it as in https://app.example."
            )


def without_root(server: Server) -> Server:
    """Returns `server`. If the directory of local media files would be the root of the file system, local media files
    are forbidden in the result, because clients could otherwise read every file. A systemd service has the root as its
    current directory.
    """
    if server.media.local_path is None and Path.cwd() == Path("/"):
        return structs.replace(server, media=structs.replace(server.media, local_path=""))
    return server


def readable_keys(path: Path, tree: dict[str, Any]) -> tuple[str, ...]:
    """A remark for the operator if the configuration file at `path` contains API keys and every user of the machine can
    read the file.
    """
    server = tree.get("server")
    if isinstance(server, dict) and server.get("api_keys") and path.stat().st_mode & stat.S_IROTH:
        return (f"{path} contains API keys, and every user of this machine can read this file; run chmod o-r {path}",)
    return ()


def notes(server: Server) -> tuple[str, ...]:
    """Remarks on settings that allow more access than an operator may expect."""
    if "*" in server.allowed_origins and not server.api_keys:
        return (
            "server.allowed_origins contains '*', and there is no API key: any web page can use this server and read "
            "the server's local media files, if the page is opened on a machine that can reach the server",
        )
    return ()


def check_environment(known: set[str]) -> tuple[str, ...]:
    """Remarks on environment variables whose names begin with `PREFIX` but belong to no flag.

    Raises:
        StartupError: the name of a variable is similar to the name of a flag's variable.
    """
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and name not in known and not _OF_SERVICES.fullmatch(name)
    )
    for name in unknown:
        hint = suggestion(name.removeprefix(PREFIX), [variable.removeprefix(PREFIX) for variable in known])
        if hint.startswith("did you mean"):
            raise StartupError(
                f"{name}: no setting is read from this environment variable; {hint.replace('mean ', f'mean {PREFIX}')}"
            )
    return tuple(f"the environment variable {name} has no effect, because no flag uses it" for name in unknown)
