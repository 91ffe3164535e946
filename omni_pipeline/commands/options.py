"""Adds the flags of `config.flags` to a command, and passes the resulting settings to the command."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from omni_pipeline.config import layout_files
from omni_pipeline.config.access import check_environment
from omni_pipeline.config.flags import COMMON
from omni_pipeline.config.layers import SET, SettingsLayer, gather, nest
from omni_pipeline.config.schema import Config, merge
from omni_pipeline.contract.flag import INSIGHT, LIMITS, MEDIA, MEMORY, MODEL, NETWORK, PLACEMENT, Flag
from omni_pipeline.contract.graph import load_graph
from omni_pipeline.errors import StartupError

_PANELS = (MODEL, PLACEMENT, MEMORY, NETWORK, MEDIA, LIMITS, INSIGHT)

_CONFIG = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="YAML file with the settings of these flags and other settings, or the name of a layout (see "
        "`sgl-omni config list`). Flags override the file.",
        metavar="FILE|NAME",
        autocompletion=layout_files.complete,
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
_SET = Annotated[
    list[str] | None,
    typer.Option(
        SET,
        help="Any other setting of the configuration file, such as thinker.engine.chunked_prefill_size=2048 or "
        "server.limits.requests=8; see docs/configuration.md. Repeatable. --set overrides all other sources.",
        metavar="PATH=VALUE",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]


def all_flags() -> list[Flag]:
    """The common flags and the flags of the model, in the order of ``--help``."""
    flags = [*COMMON, *load_graph(Config().graph).flags]
    return sorted(flags, key=lambda flag: _PANELS.index(flag.panel))


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Returns `command` with all flags, ``--config`` and ``--set``, in addition to its own parameters.

    Args:
        command: The function to extend. The function's first parameter, `settings`, receives the
            `config.layers.Settings`.
    """
    flags = all_flags()
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def run(context: typer.Context, **given: Any) -> None:
        mine = {parameter.name: given.pop(parameter.name) for parameter in own}
        unknown = check_environment({flag.variable for flag in flags})
        layers = [*_layers(flags, given, context, environment=True), *_layers(flags, given, context, environment=False)]
        file = layout_files.find(given["config"]) if given["config"] is not None else None
        settings = gather(file.path if file else None, layers, given["set_"] or ())
        notes = (*([file.note] if file and file.note else []), *settings.notes, *unknown)
        settings = msgspec.structs.replace(settings, notes=notes)
        command(settings, **mine)

    parameters = [
        _parameter("context", typer.Context, inspect.Parameter.empty),
        *(_parameter(flag.parameter, _option(flag), None) for flag in flags[:1]),
        _parameter("config", _CONFIG, None),
        _parameter("set_", _SET, None),
        *(_parameter(flag.parameter, _option(flag), None) for flag in flags[1:]),
        *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(flag: Flag) -> Any:
    return Annotated[
        flag.kind | None,
        typer.Option(
            flag.name,
            help=flag.help,
            metavar=flag.metavar,
            envvar=flag.variable,
            show_envvar=False,
            show_default=flag.default,
            rich_help_panel=flag.panel,
            parser=_parser(flag),
        ),
    ]


def _parser(flag: Flag) -> Callable[[str], Any] | None:
    parse = flag.parse
    if parse is None:
        return None

    def parser(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parser


def _layers(
    flags: list[Flag], given: dict[str, Any], context: typer.Context, *, environment: bool
) -> list[SettingsLayer]:
    """One layer of settings for each flag that is set. If `environment` is true, includes only flags that are set by an
    environment variable; otherwise, only flags that are set on the command line.
    """
    layers = []
    for flag in flags:
        value = given[flag.parameter]
        if environment and flag.guards and not value and os.environ.get(flag.variable, "-").strip() == "":
            # An operator sets this variable to protect the server. With an empty value, the flag would get its default,
            # which does not protect the server.
            if flag.kind is not str:
                raise StartupError(f"{flag.variable} is set, but it is empty: give it a value, or unset it.")
            layers.append(SettingsLayer(flag.variable, nest(flag.settings[0], "")))
            continue
        if value is None or value == []:
            continue
        source = context.get_parameter_source(flag.parameter)
        if (source is not None and source.name == "ENVIRONMENT") == environment:
            name = flag.variable if environment else flag.name
            layers.append(SettingsLayer(name, functools.reduce(merge, (nest(path, value) for path in flag.settings))))
    return layers
