"""Checks the hosts of a configuration."""

from __future__ import annotations

import ipaddress
import re

from omni_pipeline.config.schema import MAIN_HOST, Cluster, Config, GroupConfig
from omni_pipeline.errors import StartupError, suggestion

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_RAY_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}")


def check_hosts(config: Config) -> None:
    """Refuse hosts that cannot work.

    Raises:
        StartupError: a name or an address is not valid, a group runs on an unknown host, no group runs on a host, or
            the server has no address to which other hosts can connect.
    """
    for name, host in config.hosts.items():
        if not _NAME.fullmatch(name):
            raise StartupError(f"hosts: {name!r} is not a name of a host: use letters, digits, - and _.")
        if name == MAIN_HOST:
            raise StartupError(
                f"hosts.{name}: the name {MAIN_HOST} means the host of this server; choose another name."
            )
        _check_address(f"hosts.{name}.listen", host.listen)
    for name, group in config.groups.items():
        _check_group(name, group, config)
    used = {host for group in config.groups.values() for host in group.hosts}
    for name in config.hosts:
        if name not in used:
            raise StartupError(f"hosts.{name}: no group runs on this host; add the host to groups.….hosts.")
    _check_cluster(config.cluster, needed=bool(config.hosts))


def _check_group(name: str, group: GroupConfig, config: Config) -> None:
    place = f"groups.{name}.hosts"
    for host in group.hosts:
        if host != MAIN_HOST and host not in config.hosts:
            hint = suggestion(host, (MAIN_HOST, *config.hosts))
            raise StartupError(f"{place}: there is no host {host} in the setting 'hosts'; {hint}")
    most = group.replicas if group.max_replicas is None else group.max_replicas
    if len(group.hosts) > most:
        replicas = "is only 1 replica" if most == 1 else f"are only {most} replicas"
        raise StartupError(f"{place}: there are {len(group.hosts)} hosts in the list, but there {replicas}.")


def _check_cluster(cluster: Cluster, *, needed: bool) -> None:
    if needed and cluster.listen is None:
        raise StartupError(
            "cluster.listen: set the address of this machine to which the other hosts can connect, such as "
            "cluster.listen=10.0.0.1."
        )
    _check_address("cluster.listen", cluster.listen)
    _check_ray_address(cluster.ray_address, needed=needed)
    try:
        ports = cluster.port_range
    except ValueError as error:
        raise StartupError(f"cluster.ports: {error}") from error
    if ports is not None and cluster.port in ports:
        raise StartupError(
            f"cluster.ports: {cluster.ports} includes port {cluster.port}, but cluster.port uses this port; "
            "choose other ports."
        )


def _check_address(place: str, address: str | None) -> None:
    """Refuse an address to which no other host can connect."""
    if address is None:
        return
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        raise StartupError(
            f"{place}: {address!r} is not an IP address; write an IP address such as 10.0.0.1, without a port."
        ) from None
    if known.is_unspecified:
        raise StartupError(f"{place}: other hosts cannot connect to {address}; write an IP address of the machine.")


def _check_ray_address(address: str | None, *, needed: bool) -> None:
    if address is None:
        return
    if not needed:
        raise StartupError(
            "cluster.ray_address: there is no host on which Ray could start an agent; list the hosts in the setting "
            "'hosts' and in groups.….hosts."
        )
    if address != "auto" and not _RAY_ADDRESS.fullmatch(address):
        raise StartupError(
            f"cluster.ray_address: {address!r} is not the address of a Ray cluster; write auto, or the address and "
            "port of its head, as in 10.0.0.1:6379."
        )
