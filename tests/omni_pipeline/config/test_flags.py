"""Flags, files and environment variables have the right results: the values of the settings and the sources of these
values, or an error message.
"""

# ruff: noqa: E501 - a table is read by row

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from omni_pipeline.cli import app
from omni_pipeline.errors import StartupError

FILE = """
model_path: from/file
stages:
  thinker: {gpus: [1], threads: 2, options: {mem_fraction_static: 0.6}}
  talker_ar: {options: {engine: {page_size: 16}}}
server: {port: 1111, media: {max_items: 3}}
"""
COLOCATED = "colocate: true\nstages: {thinker: {memory: 0.6}, talker_ar: {memory: 12GiB}}\n"

Show = Callable[..., Result]


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Runs `sgl-omni config show --json` in a directory with two files, on a machine with the described GPUs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(FILE)
    (tmp_path / "one.yaml").write_text(COLOCATED)

    def show(flags: str, gpus: str | None, **environment: str) -> Result:
        machine = ["--gpus", gpus] if gpus else ["--device", "cpu"]
        return CliRunner().invoke(app, ["config", "show", "--json", *machine, *flags.split()], env=environment)

    return show


M = "--model-path x "
T, K = "stages.thinker.", "stages.talker_ar."
FREE = "automatic"
STATIC = "options.mem_fraction_static"

RESOLVED: list[tuple[str, str | None, dict[str, tuple[Any, str]]]] = [
    # the model
    (M, None, {"model_path": ("x", "--model-path"), "text_only": (False, "default"), "colocate": (False, "default")}),
    ("--config x.yaml", "2xH100-80GB", {"model_path": ("from/file", "x.yaml")}),
    ("--config x.yaml --model-path y", "2xH100-80GB", {"model_path": ("y", "--model-path")}),
    (M + "--model-name q", None, {"server.model_name": ("q", "--model-name")}),
    (M + "--text-only", None, {"text_only": (True, "--text-only")}),
    # network, media, limits
    (M + "--host 0.0.0.0 --port 8008", None, {"server.host": ("0.0.0.0", "--host"), "server.port": (8008, "--port")}),
    (M, None, {"server.port": (8000, "default"), "server.host": ("127.0.0.1", "default")}),
    ("--config x.yaml", "2xH100-80GB", {"server.port": (1111, "x.yaml"), "server.media.max_items": (3, "x.yaml")}),
    ("--config x.yaml --port 0", "2xH100-80GB", {"server.port": (0, "--port")}),
    (M + "--api-key a --api-key b", None, {"server.api_keys": (["(hidden)"] * 2, "--api-key")}),
    (M + "--allowed-local-media-path /m", None, {"server.media.local_path": ("/m", "--allowed-local-media-path")}),
    (
        M + "--allowed-media-domain a.org --allowed-media-domain b:9",
        None,
        {"server.media.allowed_domains": (["a.org", "b:9"], "--allowed-media-domain")},
    ),
    (M + "--max-media 7", None, {"server.media.max_items": (7, "--max-media")}),
    (M + "--max-media-bytes 3MiB", None, {"server.media.max_bytes": (3 * 2**20, "--max-media-bytes")}),
    (M + "--max-requests 9", None, {"server.limits.requests": (9, "--max-requests")}),
    (M + "--max-body-bytes 1000", None, {"server.limits.body_bytes": (1000, "--max-body-bytes")}),
    (M + "--request-timeout 1.5", None, {"server.limits.request_seconds": (1.5, "--request-timeout")}),
    (M + "--log-level debug", None, {"log_level": ("debug", "--log-level")}),
    # the CPU
    (M, None, {T + "device": ("cpu", "--device"), T + "gpus": ([], "default"), T + "worker": ("thinker", "a separate process")}),
    (M + "--colocate", None, {T + "worker": ("gpu", "--colocate"), "stages.decode.worker": ("decode", "a separate process")}),
    (M + "--thinker-tp-size 2", None, {T + "tp_size": (2, "--thinker-tp-size"), K + "tp_size": (1, "default")}),
    (M + "--mem-fraction-static 0.88", None, {T + STATIC: (0.88, "--mem-fraction-static")}),
    (M + "--set thinker.threads=2", None, {T + "threads": (2, "--set thinker.threads=2")}),
    # one GPU
    (M, "H100-80GB", {T + "device": ("cuda", "a GPU is visible"), T + "gpus": ([0], FREE), K + "gpus": ([0], FREE)}),
    (M, "H100-80GB", {"stages.decode.device": ("cpu", "this stage computes on the CPU only"), "stages.decode.gpus": ([], "default")}),
    (M + "--device cuda", "H100-80GB", {T + "device": ("cuda", "--device")}),
    (M + "--device cpu", "H100-80GB", {T + "device": ("cpu", "--device"), T + "gpus": ([], "default")}),
    (M + "--colocate", "H200-141GB", {T + "gpus": ([0], "--colocate"), K + "worker": ("gpu", "--colocate")}),
    (M + "--config one.yaml", "H20-96GB", {T + "memory": (0.6, "one.yaml"), K + "memory": ("12GiB", "one.yaml")}),
    (M + "--config one.yaml", "H20-96GB", {T + "worker": ("gpu", "one.yaml"), T + "gpus": ([0], "one.yaml")}),
    (M + "--config one.yaml --colocate", "H20-96GB", {T + "worker": ("gpu", "--colocate")}),
    (M + "--config one.yaml --set thinker.memory=0.5", "H20-96GB", {T + "memory": (0.5, "--set thinker.memory=0.5")}),
    (M + "--set code2wav.device=cpu", "H100-80GB", {"stages.code2wav.gpus": ([], "default"), K + "gpus": ([0], FREE)}),
    (M + "--text-only", "H100-80GB", {T + "gpus": ([0], FREE)}),
    # several GPUs
    (M, "2xH100-80GB", {T + "gpus": ([0], FREE), K + "gpus": ([1], FREE), "stages.image_encoder.gpus": ([0], FREE)}),
    (M, "2xH100-80GB", {"stages.code_predictor.gpus": ([1], FREE), "stages.code2wav.gpus": ([1], FREE)}),
    (M + "--gpu-thinker 1", "2xH100-80GB", {T + "gpus": ([1], "--gpu-thinker"), K + "gpus": ([0], FREE)}),
    (M + "--gpu-talker 0", "2xH100-80GB", {K + "gpus": ([0], "--gpu-talker"), T + "gpus": ([1], FREE)}),
    (M + "--gpu-code-predictor 3", "4x24GB", {"stages.code_predictor.gpus": ([3], "--gpu-code-predictor")}),
    (M + "--gpu-code2wav 2", "4x24GB", {"stages.code2wav.gpus": ([2], "--gpu-code2wav")}),
    (M + "--gpu-image-encoder 1", "4x24GB", {"stages.image_encoder.gpus": ([1], "--gpu-image-encoder")}),
    (M + "--gpu-audio-encoder 1", "4x24GB", {"stages.audio_encoder.gpus": ([1], "--gpu-audio-encoder")}),
    (M + "--gpu-thinker 0,1", "4x24GB", {T + "gpus": ([0, 1], "--gpu-thinker"), T + "tp_size": (2, "one rank for each GPU")}),
    (M + "--gpu-thinker 1,3 --thinker-tp-size 2", "4x24GB", {T + "tp_size": (2, "--thinker-tp-size"), K + "gpus": ([2], FREE)}),
    (M + "--thinker-tp-size 2", "4x24GB", {T + "gpus": ([0, 1], FREE), K + "gpus": ([2], FREE)}),
    (M + "--thinker-tp-size 2", "2x24GB", {T + "gpus": ([0, 1], FREE), K + "gpus": ([1], FREE)}),
    (M + "--colocate --gpu-thinker 1", "2xH100-80GB", {T + "gpus": ([1], "--gpu-thinker"), K + "gpus": ([1], "--colocate")}),
    ("--config x.yaml", "2xH100-80GB", {T + "gpus": ([1], "x.yaml"), K + "gpus": ([0], FREE), T + "threads": (2, "x.yaml")}),
    ("--config x.yaml --gpu-thinker 0", "2xH100-80GB", {T + "gpus": ([0], "--gpu-thinker"), K + "gpus": ([1], FREE)}),
    (
        M + "--replicas voice=2,vocoder=3",
        None,
        {
            "groups.voice.replicas": (2, "--replicas"),
            "groups.voice.stages": (["talker_ar", "code_predictor"], "from the name of the group"),
            "groups.vocoder.replicas": (3, "--replicas"),
            K + "worker": ("talker_ar", "a separate process"),
        },
    ),
    (
        M + "--replicas vocoder=2 --set groups.vocoder.gpus=[[1],[2]]",
        "4x24GB",
        {"groups.vocoder.gpus": ([[1], [2]], "--set groups.vocoder.gpus=[[1],[2]]"), "stages.code2wav.gpus": ([], "default")},
    ),
    # memory
    (M, "2xH100-80GB", {T + STATIC: (None, "default"), T + "memory": (None, "default")}),
    (
        M + "--mem-fraction-static 0.88",
        "2xH100-80GB",
        {T + STATIC: (0.88, "--mem-fraction-static"), K + STATIC: (0.88, "--mem-fraction-static")},
    ),
    (
        M + "--talker-mem-fraction-static 0.2 --mem-fraction-static 0.88",
        "2xH100-80GB",
        {T + STATIC: (0.88, "--mem-fraction-static"), K + STATIC: (0.2, "--talker-mem-fraction-static")},
    ),
    (
        M + "--thinker-mem-fraction-static 0.7 --talker-mem-fraction-static 0.2",
        "H100-80GB",
        {T + STATIC: (0.7, "--thinker-mem-fraction-static"), K + STATIC: (0.2, "--talker-mem-fraction-static")},
    ),
    ("--config x.yaml", "2xH100-80GB", {T + STATIC: (0.6, "x.yaml"), K + STATIC: (None, "default")}),
    ("--config x.yaml --mem-fraction-static 0.5", "2xH100-80GB", {T + STATIC: (0.5, "--mem-fraction-static")}),
    (M + "--mem-fraction-static 0.5 --text-only", "H100-80GB", {T + STATIC: (0.5, "--mem-fraction-static")}),
    # everything else
    (
        M + "--set thinker.engine.chunked_prefill_size=2048",
        None,
        {T + "options.engine.chunked_prefill_size": (2048, "--set thinker.engine.chunked_prefill_size=2048")},
    ),
    (
        "--config x.yaml --set talker_ar.engine.page_size=1",
        "2xH100-80GB",
        {K + "options.engine.page_size": (1, "--set talker_ar.engine.page_size=1")},
    ),
    (M + "--port 1 --set server.port=2", None, {"server.port": (2, "--set server.port=2")}),
    (M + "--set thinker.threads=1 --set thinker.threads=2", None, {T + "threads": (2, "--set thinker.threads=2")}),
    (M + "--set image_encoder.cache_bytes=0", None, {"stages.image_encoder.options.cache_bytes": (0, "--set image_encoder.cache_bytes=0")}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "gpus", "expected"), RESOLVED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_flags_come_to(flags: str, gpus: str | None, expected: dict[str, tuple[Any, str]], show: Show) -> None:
    result = show(flags, gpus)
    assert result.exit_code == 0, result.exception
    lines = {line["path"]: (line["value"], line["origin"]) for line in json.loads(result.stdout)}
    assert {path: lines[path] for path in expected} == expected


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ("", {"SGL_OMNI_MODEL_PATH": "e"}, {"model_path": ("e", "SGL_OMNI_MODEL_PATH")}),
        (M, {"SGL_OMNI_MODEL_PATH": "e"}, {"model_path": ("x", "--model-path")}),
        ("--config x.yaml", {"SGL_OMNI_LISTEN_PORT": "5"}, {"server.port": (5, "SGL_OMNI_LISTEN_PORT")}),
        (M, {"SGL_OMNI_API_KEY": "a b"}, {"server.api_keys": (["(hidden)"] * 2, "SGL_OMNI_API_KEY")}),
        (M, {"SGL_OMNI_TEXT_ONLY": "1"}, {"text_only": (True, "SGL_OMNI_TEXT_ONLY")}),
        (M, {"SGL_OMNI_GPU_THINKER": "0,1"}, {T + "gpus": ([0, 1], "SGL_OMNI_GPU_THINKER")}),
        (
            M + "--mem-fraction-static 0.5",
            {"SGL_OMNI_THINKER_MEM_FRACTION_STATIC": "0.4"},
            {T + STATIC: (0.5, "--mem-fraction-static")},
        ),
    ],
    ids=str,
)
def test_flag_wins_over_environment_and_that_over_the_file(
    flags: str, environment: dict[str, str], expected: dict[str, tuple[Any, str]], show: Show
) -> None:
    result = show(flags, "2xH100-80GB", **environment)
    assert result.exit_code == 0, result.exception
    lines = {line["path"]: (line["value"], line["origin"]) for line in json.loads(result.stdout)}
    assert {path: lines[path] for path in expected} == expected


@pytest.mark.parametrize(
    ("flags", "gpus", "message"),
    [
        ("", None, "No model is named: pass --model-path"),
        (M + "--device cuda --gpus 1xH100", None, "Cannot read the GPU description '1xH100'"),
        (M + "--colocate --gpu-thinker 0 --gpu-talker 1", "2xH100-80GB", "The setting 'colocate' puts all stages on one GPU, but the settings of the stages name the GPUs 0, 1"),
        (M + "--colocate --gpu-thinker 0,1", "2xH100-80GB", "the setting 'colocate' puts all stages on one GPU, so thinker cannot have several"),
        (M + "--colocate --thinker-tp-size 2", "2xH100-80GB", "so thinker cannot have several"),
        (M + "--colocate --config one.yaml --gpu-talker 1", "H20-96GB", "there is no GPU 1; there is only GPU 0 (H20-96GB)"),
        (M + "--gpu-thinker 4", "4x24GB", "stages.thinker.gpus: there is no GPU 4; the GPUs are 0 to 3."),
        (M + "--gpu-talker 1", "H100-80GB", "stages.talker_ar.gpus: there is no GPU 1; there is only GPU 0"),
        (M + "--gpu-thinker 0", None, "stages.thinker.gpus: thinker cannot use a GPU: it computes on the CPU"),
        (M + "--gpu-talker 0,1", "2xH100-80GB", "talker_ar computes on one GPU, and cannot use 2 GPUs."),
        (M + "--gpu-code2wav 0,1", "2xH100-80GB", "code2wav computes on one GPU"),
        (M + "--gpu-thinker 0,0", "2xH100-80GB", "GPU 0 is named twice."),
        (M + "--gpu-thinker 0,1 --thinker-tp-size 4", "4x24GB", "4 ranks need one GPU each, but stages.thinker.gpus names 2 GPUs (0, 1)."),
        (M + "--gpu-thinker 0 --thinker-tp-size 2", "2xH100-80GB", "2 ranks need one GPU each, but stages.thinker.gpus names 1 GPU (0)."),
        (M + "--thinker-tp-size 4", "2xH100-80GB", "tp_size: 4 ranks need 4 GPUs, but this stage can have only 2 GPUs."),
        (M + "--set talker_ar.tp_size=2", "2xH100-80GB", "talker_ar does not support tensor parallelism."),
        (M + "--text-only --gpu-talker 1", "2xH100-80GB", "--gpu-talker: a text-only server does not run talker_ar."),
        (M + "--text-only --gpu-code2wav 1", "2xH100-80GB", "--gpu-code2wav: a text-only server does not run code2wav."),
        (M + "--text-only --talker-mem-fraction-static 0.2", "H100-80GB", "--talker-mem-fraction-static: a text-only server does not run"),
        (M + "--text-only --replicas voice=2", None, "--replicas: a text-only server has no stage of the group voice."),
        (M + "--replicas voices=2", None, "groups.voices: the model has no group and no stage of this name; did you mean voice?"),
        (M + "--replicas vocoder=99", None, "--replicas: groups.vocoder.replicas: expected `int` <= 64."),
        (M + "--text-only --set talker_ar.threads=2", None, "--set talker_ar.threads=2: a text-only server does not run talker_ar."),
        (M + "--mem-fraction-static 0.88", "H100-80GB", "GPU 0 (H100-80GB) add up to 1.76 times its memory: thinker 0.88 + talker_ar 0.88."),
        (M + "--config one.yaml --set talker_ar.memory=0.5", "H20-96GB", "add up to 1.1 times its memory: thinker 0.6 + talker_ar 0.5."),
        (M + "--set thinker.memory=0.5 --thinker-mem-fraction-static 0.6", "H100-80GB", "stages.thinker: mem_fraction_static reserves 0.6 of GPU 0 for weights and KV cache, but stages.thinker.memory limits the whole stage to 0.5 of this GPU."),
        (M + "--device cpu --set thinker.gpus=[0]", "H100-80GB", "thinker cannot use a GPU: it computes on the CPU."),
        (M + "--config one.yaml", "24GB", "add up to 1.14 times its memory: thinker 0.6 + talker_ar 0.537."),
        (M + "--config one.yaml", None, "stages.thinker.memory: thinker cannot have a GPU memory budget: it computes on the CPU"),
        (M + "--set decode.memory=0.1", "H100-80GB", "stages.decode.memory: decode cannot have a GPU memory budget"),
        (M + "--set decode.gpus=[0]", "H100-80GB", "decode cannot use a GPU: it computes on the CPU."),
        (M + "--set thinker.engin.x=1", None, "the stage thinker has no setting 'engin'; did you mean engine?"),
        (M + "--set tinker.threads=1", None, "did you mean thinker?"),
        (M + "--config no.yaml", None, "--config no.yaml: there is no such file, and no layout of that name"),
    ],
)  # fmt: skip
def test_combination_that_cannot_work_is_refused(flags: str, gpus: str | None, message: str, show: Show) -> None:
    result = show(flags, gpus)
    assert isinstance(result.exception, StartupError), result.output
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (f"--{name}mem-fraction-static {value}", f"'{value}' is not a number greater than 0 and less than 1.")
        for name in ("", "thinker-", "talker-")
        for value in ("0", "1", "1.5", "-1", "much", "nan")
    ]
    + [
        ("--gpu-thinker a", "'a' is not a GPU index"),
        ("--gpu-thinker 0,", "'0,' is not a GPU index"),
        ("--gpu-talker -1", "'-1' is not a GPU index"),
        ("--thinker-tp-size 0", "'0' is not a whole number of at least 1."),
        ("--replicas voice", "'voice' is not the name of a group with a number of replicas, such as vocoder=3."),
        ("--replicas voice=0", "'voice=0' is not the name of a group with a number of replicas"),
        ("--replicas voice=2,voice=3", "the group voice is named twice."),
        ("--port 70000", "'70000' is not a port from 0 to 65535."),
        ("--max-requests none", "'none' is not a whole number of at least 1."),
        ("--max-media-bytes 3TB", "'3TB' is not a size"),
        ("--request-timeout 0", "'0' is not a positive number of seconds."),
        ("--device tpu", "'tpu' is not one of"),
    ],
)
def test_value_that_no_flag_takes_is_a_usage_error(flags: str, message: str, show: Show) -> None:
    result = show(M + flags, "2xH100-80GB")
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
