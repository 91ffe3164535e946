"""An environment variable switches the CUDA habits on or off. An invalid value is an error."""

from __future__ import annotations

import pytest

from omni_pipeline.errors import StartupError
from stages import cuda_habits


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False), (None, False)])
def test_values(monkeypatch: pytest.MonkeyPatch, value: str | None, on: bool) -> None:
    if value is None:
        monkeypatch.delenv(cuda_habits.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(cuda_habits.VARIABLE, value)
    assert cuda_habits.enabled() == on


def test_anything_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_habits.VARIABLE, "yes")
    with pytest.raises(StartupError, match="OMNI_CUDA_HABITS is 'yes', but it must be 0 or 1"):
        cuda_habits.enabled()
