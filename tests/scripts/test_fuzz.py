"""The fuzzer makes cases with every container format and every kind of damage. The same seed gives the same cases."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from fuzzing import forms
from fuzzing.api import REFUSABLE
from fuzzing.damage import DAMAGES, damaged
from fuzzing.findings import FuzzReport
from fuzzing.media import make
from fuzzing.seeds import seeds

FILES = seeds()


def test_there_is_a_whole_file_of_every_common_container():
    names = {(file.kind, file.name.split()[0]) for file in FILES}
    for kind, containers in {
        "image": "JPEG PNG WEBP GIF BMP TIFF AVIF JPEG2000 PPM TGA ICO",
        "audio": "WAV FLAC OGG MP3 AIFF mp4 webm matroska ogg mp3 adts flv",
        "video": "mp4 mov matroska webm avi mpegts mpeg flv gif asf ivf 3gp",
    }.items():
        assert {(kind, container) for container in containers.split()} <= names


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_changes_a_file(name):
    for file in FILES[::10]:
        rng = random.Random(1)
        changed = [bytearray(file.data) for _ in range(8)]
        for copy in changed:
            DAMAGES[name](copy, rng, [other.data for other in FILES])
        assert any(bytes(copy) != file.data for copy in changed)


@pytest.mark.parametrize("data", [b"x", b"xy", b"xyz"])
def test_even_the_smallest_file_can_be_damaged(data):
    for seed in range(200):
        _, result = damaged(data, random.Random(seed), [b"other"])
        assert result


def test_a_valid_request_may_be_refused_for_the_size_of_its_media():
    rows = re.findall(r"^\| 400 \| (.*?) \|", (Path(__file__).parents[2] / "docs" / "api.md").read_text(), re.MULTILINE)
    codes = re.findall(r"`((?:image|audio|video)_too_\w+)`", " ".join(rows))
    assert len(codes) == 5
    assert set(codes) <= REFUSABLE


def test_a_case_is_the_same_for_the_same_seed_and_number():
    assert make(11, 1, FILES) == make(11, 1, FILES)
    assert make(11, 1, FILES) != make(11, 2, FILES)
    assert make(11, 1, FILES) != make(11 + len(FILES), 1, FILES)


def test_forms_are_whole_and_damaged_with_right_and_wrong_fields():
    cases = [forms.make(number, 1, FILES) for number in range(300)]
    assert cases == [forms.make(number, 1, FILES) for number in range(300)]
    assert {case.path for case in cases} == set(forms.PATHS)
    for word in ("sound form", "flip_bits", "whole", "response_format", "language", "nothing"):
        assert any(word in case.what for case in cases), word


@pytest.mark.parametrize(
    ("status", "code", "good"),
    [
        (200, "ok", True),
        (400, "invalid_image", True),
        (429, "too_many_requests", True),
        (503, "not_ready", True),
        (503, "something", False),
        (500, "internal_error", False),
        (504, "request_timeout", False),
        (503, "worker_lost", False),
    ],
)
def test_what_must_not_be_is_kept(status, code, good):
    report = FuzzReport("media", 1, 0)
    report.judge(5, "a case", status, code)
    assert report.good == good
    kept = report.findings + report.crashes
    assert [finding.case for finding in kept] == ([] if good else [5])


def test_a_crash_is_bearable_if_the_worker_was_started_again():
    report = FuzzReport("media", 1, 0)
    report.judge(5, "a case", 503, "worker_lost")
    report.restarts = {"preprocessing": 1}
    assert report.good
