"""The output of `sgl-omni simulate` as data: the predictions for several loads and several changes of a deployment."""

from __future__ import annotations

from msgspec import Struct

from omni_pipeline.simulation.capacity import Capacity
from omni_pipeline.simulation.results import Prediction


class Level(Struct, frozen=True):
    """A load and its prediction."""

    load: str
    prediction: Prediction


class ChangeResult(Struct, frozen=True):
    """The prediction for a deployment after one change. The load is the last of the report's loads.

    Attributes:
        gpus: Number of additional GPUs.
        gain: Growth of the answers per second, relative to the unchanged deployment. For example, 0.1 means 10 % more
            answers per second.
        capacity: The gapless capacity; None if it was not searched.
    """

    change: str
    gpus: int
    prediction: Prediction
    gain: float
    capacity: Capacity | None


class SimulationReport(Struct, frozen=True):
    """The output of `sgl-omni simulate`.

    Attributes:
        laws: Where the laws come from.
        notes: Remarks on what the simulation does not consider.
        levels: The predictions, in the order of the loads.
        capacity: The gapless capacity; None if it was not searched.
        changes: The best change first.
    """

    laws: str
    notes: tuple[str, ...]
    levels: tuple[Level, ...]
    capacity: Capacity | None
    changes: tuple[ChangeResult, ...]
