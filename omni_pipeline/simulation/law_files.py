"""Reads the laws of a simulation. The law of a stage gives the time of a step (see `contract.simulation.StepLaw`).

The laws come from a set of published laws, from a file, or from the metrics of a server. A law file is YAML or JSON,
and contains the laws of stages:

    base: published                     # laws of stages that the file does not contain
    source: measured on one H100
    stages:
      thinker: {step: 0.012, item: 0.0011, token: 0.0000165}
      talker_ar: {points: [[1, 0.0071], [4, 0.008], [6, 0.0091]]}
    costs: {gateway: 0.003}             # see network.Costs

A metrics page contains sums since the start of the server. So a single page gives one point: the mean number of items
in a step, and the mean time of a step. The published law is then scaled so that it gives this time for this number of
items. If there are several pages, each page after the first gives a point for the time since the page before it. If the
points have different numbers of items, the law is the straight line that fits the points best. In this fit, each step
has the same weight.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from omni_pipeline.config import strict_yaml
from omni_pipeline.config.schema import convert
from omni_pipeline.contract.simulation import SimulationModel, StepLaw
from omni_pipeline.errors import StartupError, suggestion
from omni_pipeline.simulation.network import Costs

_PAGE_SECONDS = 10.0

_STEP_SECONDS, _BATCHES, _REQUESTS = (
    "omni_stage_step_seconds_sum",
    "omni_stage_batch_size_count",
    "omni_stage_batch_size_sum",
)
_PROMPT, _CACHED = "omni_stage_prompt_tokens_total", "omni_stage_prompt_tokens_cached_total"


class Laws(Struct, frozen=True):
    """The laws of a simulation, and the times that do not depend on the model (see `network.Costs`).

    Attributes:
        source: Where the laws come from.
        costs: None if the source contains no costs.
    """

    laws: dict[str, StepLaw]
    source: str
    costs: Costs | None = None


class LawFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a law file. If `base` is empty, stages that are missing in the file take no time.

    Attributes:
        stages: The content of a `StepLaw` for each stage.
    """

    stages: dict[str, Any]
    base: str = ""
    source: str = ""
    costs: Costs | None = None


class _Point(Struct, frozen=True):
    """The mean number of items in a step, the mean time of a step, and the number of steps."""

    items: float
    seconds: float
    steps: float


def read_laws(names: Sequence[str], model: SimulationModel) -> Laws:
    """The laws that `names` describe.

    Args:
        names: One name of a law set, or one law file, or metrics pages in the order in which they were read. A metrics
            page is a URL, or a file whose name ends in ``.prom``. Without names, the model's first law set is used.

    Raises:
        StartupError: a name is unknown, or a source cannot be read or understood.
    """
    if not names:
        names = [next(iter(model.law_sets))]
    if all(_is_page(name) for name in names):
        return _of_pages(names, model)
    if len(names) > 1:
        raise StartupError("--laws can be given several times only if each value is a metrics page.")
    [name] = names
    if name in model.law_sets:
        found = model.law_sets[name]
        return Laws(found.laws, found.source)
    path = Path(name)
    if not path.is_file():
        hint = suggestion(name, model.law_sets)
        raise StartupError(f"--laws {name}: there is no file and no set of laws with this name; {hint}")
    return _of_file(path, model)


def _of_file(path: Path, model: SimulationModel) -> Laws:
    source = f"{path}: "
    try:
        tree = strict_yaml.parse(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, strict_yaml.RepeatedKeyError) as error:
        raise StartupError(f"{source}{error}") from error
    file = convert(tree, LawFile, "", source=source)
    own = {}
    for name, law in file.stages.items():
        if name not in model.stages:
            raise StartupError(f"{source}stages.{name}: there is no such stage; {suggestion(name, model.stages)}")
        own[name] = convert(law, StepLaw, f"stages.{name}", source=source)
        _check(own[name], f"{source}stages.{name}")
    base = _base(file.base, model, f"{source}base: ") if file.base else {}
    return Laws({**base, **own}, file.source or str(path), file.costs)


def _base(name: str, model: SimulationModel, source: str) -> dict[str, StepLaw]:
    if name not in model.law_sets:
        raise StartupError(f"{source}there is no set of laws with the name {name}; {suggestion(name, model.law_sets)}")
    return model.law_sets[name].laws


def _check(law: StepLaw, place: str) -> None:
    numbers = [law.step, law.item, law.token, *(number for point in law.points for number in point)]
    if any(number < 0 for number in numbers):
        raise StartupError(f"{place}: no number may be negative.")
    if any(one[0] >= other[0] for one, other in zip(law.points, law.points[1:], strict=False)):
        raise StartupError(f"{place}.points: sort the points by number of items, and write each number only once.")
    if law.points and (law.step or law.item):
        raise StartupError(f"{place}: 'points' cannot be combined with 'step' or 'item'.")


def _is_page(name: str) -> bool:
    return name.startswith(("http://", "https://")) or name.endswith(".prom")


def _of_pages(names: Sequence[str], model: SimulationModel) -> Laws:
    base = next(iter(model.law_sets.values())).laws
    pages = [_counters(name) for name in names]
    laws = {}
    for stage in model.stages:
        points = list(_points(pages, stage, base.get(stage, StepLaw()).token, model.item_counters.get(stage)))
        if points:
            laws[stage] = _fitted(points, base.get(stage, StepLaw()))
    if not laws:
        raise StartupError(
            f"--laws {names[0]}: the metrics contain no steps; send requests to the server, and read the metrics again."
        )
    return Laws({**base, **laws}, f"measured: {', '.join(names)}")


def _counters(name: str) -> dict[tuple[str, str], float]:
    """The values of a metrics page. The keys are pairs of a metric and a stage. The values of all replicas of a stage
    are added up.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        if name.startswith("http"):
            with urllib.request.urlopen(name, timeout=_PAGE_SECONDS) as page:
                text = page.read().decode()
        else:
            text = Path(name).read_text()
        found: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, sample.labels.get("stage", "")
                found[key] = found.get(key, 0.0) + sample.value
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise StartupError(f"--laws {name}: cannot read the metrics: {error}") from error
    return found


def _points(
    pages: Sequence[dict[tuple[str, str], float]], stage: str, token: float, counter: str | None
) -> Iterator[_Point]:
    """The points of a stage. If there are several pages, each pair of successive pages gives a point for the steps
    between these two pages. A single page gives a point for the steps since the start of the server.

    Args:
        token: Time of one prompt token. The time of all computed prompt tokens is subtracted from the steps' time.
        counter: The metric that counts the items; None for requests.
    """
    before: dict[tuple[str, str], float] = pages[0] if len(pages) > 1 else {}
    for page in pages[1:] or pages:

        def since(metric: str, page: Any = page, before: Any = before) -> float:
            return float(page.get((metric, stage), 0.0) - before.get((metric, stage), 0.0))

        steps = since(_BATCHES)
        if steps > 0:
            computed = since(_PROMPT) - since(_CACHED)
            seconds = max(since(_STEP_SECONDS) - token * computed, 0.0)
            yield _Point(since(counter or _REQUESTS) / steps, seconds / steps, steps)
        before = page


def _fitted(points: Sequence[_Point], base: StepLaw) -> StepLaw:
    """The law for the points of a stage. If the points have different numbers of items, the law is the straight line
    that fits the points best. Otherwise, the law is `base`, scaled to the mean time of the points.
    """
    steps = sum(point.steps for point in points)
    items = sum(point.steps * point.items for point in points) / steps
    seconds = sum(point.steps * point.seconds for point in points) / steps
    variance = sum(point.steps * (point.items - items) ** 2 for point in points)
    if variance > 0:
        products = sum(point.steps * (point.items - items) * (point.seconds - seconds) for point in points)
        slope = min(max(products / variance, 0.0), seconds / items)
        return StepLaw(seconds - slope * items, slope, base.token)
    expected = base.seconds(items)
    if not expected:
        return StepLaw(step=seconds, token=base.token)
    return msgspec.structs.replace(base.scaled(seconds / expected), token=base.token)
