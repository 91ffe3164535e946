"""Provides fixtures of the equality tests: the media, and a directory of media that servers may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.equality.conversations import Kit


@pytest.fixture(scope="session")
def media_directory(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A directory that servers may read, with copies of the committed media."""
    directory = tmp_path_factory.mktemp("media")
    for file in data.glob("*.*"):
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


@pytest.fixture(scope="session")
def kit(media_directory: Path) -> Kit:
    """Makes further media in `media_directory`."""
    return Kit(media_directory, media_directory)
