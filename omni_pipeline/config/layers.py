"""Merges the layers of the configuration, and records the source layer of each value.

The layers are the defaults, the file, the environment, flags, and ``--set``. Each layer overrides the layers before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from omni_pipeline.config import access, strict_yaml
from omni_pipeline.config.schema import Config, GroupConfig, HostConfig, StageConfig, convert, merge, read
from omni_pipeline.contract.graph import Graph, load_graph
from omni_pipeline.errors import StartupError, suggestion

SET = "--set"


class SettingsLayer(Struct, frozen=True):
    """The settings of one layer. `tree` is nested like a configuration file. `source` is the name of the layer in
    messages to the operator.
    """

    source: str
    tree: dict[str, Any]


class Settings(Struct, frozen=True):
    """The merged configuration.

    Attributes:
        origins: Source of each value that is not a default, by dotted path.
        notes: Remarks for the operator about the source of the settings.
        given: The layers that the operator has chosen for this start: the environment, flags and ``--set``.
    """

    config: Config
    origins: dict[str, str]
    notes: tuple[str, ...] = ()
    given: tuple[SettingsLayer, ...] = ()

    def origin(self, path: str) -> str | None:
        """Source of the value at `path`. If no layer sets this path, returns the source of the nearest enclosing path
        that a layer sets. None if the value is a default.
        """
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return None


def gather(path: Path | None, layers: Iterable[SettingsLayer] = (), assignments: Iterable[str] = ()) -> Settings:
    """Merge all settings, and check them against the schema and the graph's options.

    Args:
        path: The configuration file, or None.
        layers: Layers from the environment and from flags. Each layer overrides the layers before it.
        assignments: Values of ``--set``, such as ``thinker.threads=2``.

    Raises:
        StartupError: a setting is unknown, of the wrong type or out of range. The message names its source.
    """
    file = [SettingsLayer(str(path), read(path))] if path else []
    said = [*file, *layers]
    graph = _graph(said)
    said += [SettingsLayer(_source(text), _assignment(text, graph)) for text in assignments]
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in said:
        _check(layer, graph)
        tree = merge(tree, layer.tree)
        for place, value in leaves(layer.tree):
            if value == {}:  # merging an empty mapping has no effect, so it is not the source of any value
                continue
            origins = {known: source for known, source in origins.items() if not known.startswith(f"{place}.")}
            origins[place] = layer.source
    config = convert(tree, Config, "")
    notes = access.readable_keys(path, file[0].tree) if path else ()
    settings = Settings(config, origins, notes, tuple(said[len(file) :]))
    if config.text_only:
        _refuse_absent_stages(settings.given, graph, "a text-only server")
    return settings


def limit_to_text(settings: Settings, reason: str, origin: str) -> Settings:
    """`settings` with `text_only` set, because the checkpoint cannot speak.

    Args:
        reason: The reason why the checkpoint cannot speak, as a sentence without its full stop.
        origin: The source of the setting.

    Raises:
        StartupError: a flag configures a stage that a text-only server leaves out.
    """
    graph = load_graph(settings.config.graph)
    _refuse_absent_stages(settings.given, graph, f"this checkpoint ({reason})")
    config = msgspec.structs.replace(settings.config, text_only=True)
    note = f"Text only: the checkpoint cannot speak, because {reason}."
    return msgspec.structs.replace(
        settings, config=config, origins={**settings.origins, "text_only": origin}, notes=(*settings.notes, note)
    )


def nest(path: str, value: Any) -> Any:
    """A settings tree that contains only `value`, at `path`: ``{"a": {"b": value}}`` for the path ``a.b``."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of each leaf of `tree`. An empty mapping is a leaf too."""
    for name, value in tree.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def _graph(layers: Iterable[SettingsLayer]) -> Graph:
    named = [layer.tree["graph"] for layer in layers if isinstance(layer.tree.get("graph"), str)]
    return load_graph(named[-1] if named else Config().graph)


def _check(layer: SettingsLayer, graph: Graph) -> None:
    """Check one layer by itself, so that an error names the layer with the bad setting."""
    stages = layer.tree.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        convert(stage, StageConfig, f"stages.{name}", source=f"{layer.source}: ")
    groups = layer.tree.get("groups")
    for name, group in groups.items() if isinstance(groups, dict) else ():
        convert(group, GroupConfig, f"groups.{name}", source=f"{layer.source}: ")
    hosts = layer.tree.get("hosts")
    for name, host in hosts.items() if isinstance(hosts, dict) else ():
        convert(host, HostConfig, f"hosts.{name}", source=f"{layer.source}: ")
    config = convert(layer.tree, Config, "", source=f"{layer.source}: ")
    access.check(config.server, f"{layer.source}: ")
    for name, stage in config.stages.items():
        if name not in graph.stage_names:
            hint = suggestion(name, graph.stage_names)
            raise StartupError(f"{layer.source}: stages.{name}: there is no such stage; {hint}")
        convert(stage.options, graph.stage(name).options, f"stages.{name}.options", source=f"{layer.source}: ")


def _assignment(text: str, graph: Graph) -> dict[str, Any]:
    """The settings tree for an assignment ``path=value``. The value is YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise StartupError(f"{SET} {text}: write a setting, an equals sign and a value, as in thinker.threads=2.")
    try:
        parsed = strict_yaml.parse(value)
    except strict_yaml.RepeatedKeyError as error:
        raise StartupError(f"{SET} {text}: {error}") from error
    except yaml.YAMLError as error:
        raise StartupError(f"{SET} {text}: {value!r} is not a YAML value.") from error
    return nest(_full(path.strip(), graph, text), parsed)


def _source(text: str) -> str:
    """The source of an assignment, for messages. Hides the value of an API key."""
    path, _, value = text.partition("=")
    return f"{SET} {path}=(hidden)" if "api_key" in f"{path}{value}" else f"{SET} {text}"


def _full(path: str, graph: Graph, text: str) -> str:
    """The full path of a setting. `path` may leave out ``stages.`` and ``options.``."""
    first, _, rest = path.partition(".")
    if first == "stages":
        first, _, rest = rest.partition(".")
    elif first not in graph.stage_names:
        fields = _names(Config)
        if first not in fields:
            known = [*graph.stage_names, *fields]
            raise StartupError(f"{SET} {text}: there is no stage or setting {first}; {suggestion(first, known)}")
        return path
    if first not in graph.stage_names:
        raise StartupError(f"{SET} {text}: there is no stage {first}; {suggestion(first, graph.stage_names)}")
    second = rest.partition(".")[0]
    if second in _names(StageConfig):
        return f"stages.{first}.{rest}"
    options = _names(graph.stage(first).options)
    if second in options:
        return f"stages.{first}.options.{rest}"
    hint = suggestion(second, [*_names(StageConfig), *options])
    raise StartupError(f"{SET} {text}: the stage {first} has no setting {second!r}; {hint}")


def _names(kind: type[Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def _refuse_absent_stages(layers: Iterable[SettingsLayer], graph: Graph, served: str) -> None:
    """Refuse a flag if all its settings belong to stages that a text-only server leaves out. A file may contain such
    settings.

    Args:
        served: The subject of the error message: the server or the checkpoint that has no speech stages.
    """
    for layer in layers:
        for name in layer.tree.get("groups", {}):
            if name in graph.groups and not graph.groups[name] & graph.text_stages:
                raise StartupError(f"{layer.source}: {served} has no stage of the group {name}.")
        stages = layer.tree.get("stages", {})
        if stages and set(layer.tree) == {"stages"} and not graph.text_stages & set(stages):
            raise StartupError(f"{layer.source}: {served} does not run {', '.join(stages)}.")
