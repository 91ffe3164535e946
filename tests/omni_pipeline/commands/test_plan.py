"""`sgl-omni plan` draws which stage is on which device, reports whether the model fits, and suggests changes after
which the model would fit.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from omni_pipeline.cli import app
from omni_pipeline.contract.stage_memory import Request
from omni_pipeline.deployment.memory_plan import CachePlan, Placement
from omni_pipeline.deployment.replica_rooms import ReplicaRoom, bottleneck
from omni_pipeline.gpus import parse

ONE, FOUR = ("--gpus", "1xH100-80GB"), ("--gpus", "4x24GB")


@pytest.fixture(scope="module")
def model(data: Path) -> str:
    return str(data / "qwen3_omni_30b")


def plan(model: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", "--model-path", model, *arguments])


def as_json(model: str, *arguments: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(plan(model, "--json", *arguments).stdout)
    return parsed


def test_what_fits_is_drawn_with_who_sits_where(model: str) -> None:
    result = plan(model, "--gpus", "2xH100-80GB")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    first, second = (index for index, line in enumerate(lines) if line.startswith("GPU "))
    assert "thinker" in lines[first + 1]
    assert "talker_ar" in lines[second + 1]
    assert [line.split()[0] for line in lines[first + 3 : first + 6]] == ["image_encoder", "audio_encoder", "thinker"]
    assert lines[-1].startswith(
        "It fits, with room for 32 requests of 2,048 prompt tokens and 512 answer tokens at a time."
    )


def test_what_does_not_fit_ends_with_1_the_reason_and_what_would(model: str) -> None:
    result = plan(model, *ONE)
    assert result.exit_code == 1
    text = result.stdout
    assert "It does not fit." in text
    assert "  The KV cache of thinker has room for 2,410 tokens, but one request needs 2,560 tokens." in text
    assert "  pass --colocate: room for 20 requests" in text
    assert "  use an FP8 checkpoint: room for 32 requests" in text


@pytest.mark.parametrize(
    ("gpus", "flags"),
    [(ONE, ()), (FOUR, ()), (FOUR, ("--gpu-thinker", "0,1,2,3")), (("--gpus", "2x48GB"), ("--colocate",))],
)
def test_every_change_that_is_flags_alone_does_fit_when_it_is_made(
    model: str, gpus: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    remedies = as_json(model, *gpus, *flags)["remedies"]
    changes = [remedy for remedy in remedies if remedy["change"].startswith("pass ")]
    assert changes
    for remedy in changes:
        made = as_json(model, *gpus, *shlex.split(remedy["change"].removeprefix("pass ")))
        assert (made["fits"], made["requests"]) == (True, remedy["requests"]), remedy


def test_the_smallest_single_gpu_is_named_and_would_do(model: str) -> None:
    [change] = [remedy["change"] for remedy in as_json(model, *FOUR)["remedies"] if "one GPU" in remedy["change"]]
    size = int(change.split(" with ")[1].split()[0])
    assert as_json(model, "--gpus", f"1x{size}GiB", "--colocate")["fits"]
    assert not as_json(model, "--gpus", f"1x{size - 8}GiB", "--colocate")["fits"]


def test_json_holds_bytes_that_add_up(model: str) -> None:
    made = as_json(model, *ONE, "--colocate")
    [device] = made["devices"]
    assert sum(holding["total"] for holding in device["holdings"]) == device["taken"]
    assert device["usable"] - device["taken"] == device["left"] >= 0
    thinker = next(holding for holding in device["holdings"] if holding["stage"] == "thinker")
    [cache] = [cache for cache in made["caches"] if cache["stage"] == "thinker"]
    assert thinker["cache"] == cache["tokens"] * (cache["token_bytes"] + cache["beside_bytes"])
    assert made["requests"] == cache["requests"] == cache["tokens"] // cache["request_tokens"]


def test_smaller_requests_find_more_room(model: str) -> None:
    small = as_json(model, *ONE, "--colocate", "--prompt-tokens", "512", "--answer-tokens", "128")
    assert small["requests"] > as_json(model, *ONE, "--colocate")["requests"]
    assert small["bounded_by"] == ["code_predictor", "code2wav"]


def test_memory_flags_are_those_of_serve(model: str) -> None:
    made = as_json(model, "--gpus", "2xH100-80GB", "--thinker-mem-fraction-static", "0.80")
    [thinker] = [holding for holding in made["devices"][0]["holdings"] if holding["stage"] == "thinker"]
    assert (thinker["weights"] + thinker["cache"]) / made["devices"][0]["memory"] == pytest.approx(0.80, abs=0.001)


@pytest.mark.parametrize("flags", [("--mem-fraction-static", "0.88"), ("--thinker-mem-fraction-static", "0.88")])
def test_the_guide_s_fractions_are_tight_but_not_refused(model: str, flags: tuple[str, ...]) -> None:
    result = plan(model, "--gpus", "2xH100-80GB", *flags)
    assert result.exit_code == 0
    assert "GPU 0 (H100-80GB) has little free memory" in result.stdout


def test_ranks_that_would_cut_an_fp8_block_are_refused(model: str, tmp_path: Path) -> None:
    config = json.loads((Path(model) / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = plan(str(tmp_path), *FOUR, "--gpu-thinker", "0,1,2,3")
    assert "moe_intermediate_size is 768, so each rank would get 192, which is not a multiple of 128" in str(
        result.exception
    )
    assert "these numbers of ranks can share it evenly: 1, 2." in str(result.exception)


def test_ranks_that_do_not_divide_the_model_are_refused(model: str) -> None:
    result = plan(model, "--gpus", "3x48GB", "--gpu-thinker", "0,1,2")
    assert "3 ranks cannot share the model evenly" in str(result.exception)


def test_without_gpus_it_plans_for_this_machine_s_memory(tiny_checkpoint: Path) -> None:
    result = plan(str(tiny_checkpoint), "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("RAM ")


def test_changes_are_tried_in_the_memory_that_other_programs_leave(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_pipeline.deployment.resolve.detect", lambda: parse("2xH100-80GB"))
    monkeypatch.setattr("omni_pipeline.gpus.memory_used", lambda own: {0: own[0].memory - 2**30, 1: 0})
    assert "--colocate" in [word for each in as_json(model, *ONE)["remedies"] for word in each["change"].split()]
    changes = [each["change"] for each in as_json(model)["remedies"]]
    assert [change for change in changes if "one GPU" not in change] == []


def test_replicas_are_drawn_one_by_one(model: str) -> None:
    result = plan(
        model, "--gpus", "3xH100-80GB", "--replicas", "vocoder=3", "--set", "groups.vocoder.gpus=[[1],[1],[2]]"
    )
    assert result.exit_code == 0, result.output
    assert [name for name in ("code2wav@0", "code2wav@1", "code2wav@2") if result.stdout.count(name) == 1]
    one, three = (as_json(model, "--gpus", "3xH100-80GB", *more) for more in ((), ("--replicas", "vocoder=3")))
    held = [
        sum(holding["stage"] == "code2wav" for device in found["devices"] for holding in device["holdings"])
        for found in (one, three)
    ]
    assert held == [1, 3]
    assert three["devices"][1]["taken"] > one["devices"][1]["taken"] - one["caches"][1]["tokens"]


def test_replicas_that_do_not_fit_may_be_left_out(model: str) -> None:
    result = plan(model, *ONE, "--replicas", "all=2")
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert "thinker@1 59.3" in words
    assert "run each stage once, without groups, and pass --colocate: room for" in words


@pytest.fixture
def spread(tmp_path: Path) -> tuple[str, ...]:
    """Flags for a server whose voices and vocoders run on three hosts."""
    path = tmp_path / "hosts.yaml"
    path.write_text(
        "hosts: {b: {}, c: {}}\n"
        "cluster: {listen: 10.0.0.1}\n"
        "groups:\n"
        "  voice: {replicas: 2, hosts: [b, c]}\n"
        "  vocoder: {replicas: 3, hosts: [main, b, b], gpus: [[0], [0], [1]]}\n"
    )
    return "--config", str(path)


DESCRIBED = ("--hosts", "main=1xH100-80GB,b=2xL4-24GB,c=1xL4-24GB")


def test_several_hosts_are_drawn_with_their_replicas_and_the_bytes_between_them(
    model: str, spread: tuple[str, ...]
) -> None:
    result = plan(model, *spread, *DESCRIBED)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    titles = [line.split(" (")[0] for line in lines if line.startswith("GPU ")]
    assert titles == ["GPU 0", "GPU 0 of b", "GPU 1 of b", "GPU 0 of c"]
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("voice@", "vocoder@"))}
    assert rows["voice@0"][1:] == ["b", "GPU", "0", "of", "b", "32", "64"]
    assert rows["voice@1"][1:] == ["c", "GPU", "0", "of", "c", "32"]
    assert rows["vocoder@2"][1:6] == ["b", "GPU", "1", "of", "b"]
    [edge] = [line.split() for line in lines if line.startswith("thinker → talker_ar")]
    assert edge[3:6] == ["0.1", "8.5", "100%"]


def test_json_of_several_hosts(model: str, spread: tuple[str, ...]) -> None:
    made = as_json(model, *spread, *DESCRIBED)
    assert [(device["host"], device["index"]) for device in made["devices"]] == [
        *(("main", 0), ("b", 0), ("b", 1), ("c", 0))
    ]
    assert [(room["group"], room["host"], room["requests"]) for room in made["replicas"]] == [
        *(("voice", "b", 32), ("voice", "c", 32)),
        *(("vocoder", "main", 32), ("vocoder", "b", 32), ("vocoder", "b", 32)),
    ]
    assert made["group_requests"] == {"voice": 64, "vocoder": 96}
    assert made["bounded_by"] == ["thinker"]
    assert {(edge["source"], edge["heavy"]) for edge in made["edges"]} >= {("thinker", False), ("code2wav", False)}


def test_the_json_of_one_host_names_no_host(model: str) -> None:
    made = as_json(model, "--gpus", "2xH100-80GB", "--replicas", "vocoder=2")
    assert not {"replicas", "edges", "group_requests"} & made.keys()
    assert not {"host", "offset"} & made["devices"][0].keys()


def test_a_group_is_the_bottleneck_if_its_replicas_have_the_least_room(model: str, spread: tuple[str, ...]) -> None:
    large = ("--hosts", "main=1xH200-141GB,b=2xL4-24GB,c=1xL4-24GB", "--set", "code_predictor.max_batch=4")
    made = as_json(model, *spread, *large)
    assert (made["requests"], made["bounded_by"]) == (8, ["code_predictor"])
    assert made["group_requests"]["voice"] == 8


def test_a_group_can_have_less_room_than_each_of_its_stages() -> None:
    holds = [
        CachePlan("talk", f"talk@{replica}", 1000 * room, 1, 0, 1000, None) for replica, room in enumerate((5, 50))
    ]
    placement = Placement((), tuple(holds), Request(), {"predict": 60}, ())
    rooms = [ReplicaRoom("voice", 0, "b", (), 5), ReplicaRoom("voice", 1, "c", (), 30)]
    assert placement.requests == 55
    assert bottleneck(placement, rooms) == (35, ("voice",))


def test_a_host_that_is_too_small_is_named_and_one_host_may_do(model: str, spread: tuple[str, ...]) -> None:
    result = plan(model, *spread, "--hosts", "main=2xH100-80GB,b=2x4GiB,c=1xL4-24GB")
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert "The stages on GPU 0 of b (GPU-4GiB) need" in words
    assert "run each stage once, on the main host, without groups and hosts: room for" in words


def test_the_ram_of_each_host_is_shown(model: str, spread: tuple[str, ...]) -> None:
    ram = "main=RAM-100GiB,b=cpu,RAM-64GiB,c=cpu,RAM-1GiB"
    result = plan(model, *spread, "--device", "cpu", "--set", "groups.vocoder.gpus=[]", "--hosts", ram)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("RAM")] == ["RAM", "RAM of b", "RAM of c"]
    assert "on the CPU of c (talker_ar@1" in " ".join(result.stdout.split())


def test_a_plan_needs_the_hardware_of_every_host(model: str, spread: tuple[str, ...]) -> None:
    result = plan(model, *spread, "--gpus", "1xH100-80GB")
    assert str(result.exception) == (
        "The hardware of b and c is unknown until these hosts join. To plan now, describe this hardware with --hosts, "
        "as in --hosts b=1xH100-80GB,c=1xH100-80GB."
    )


def test_heavy_edges_are_reported(model: str) -> None:
    settings = ("groups.encoders.hosts=[b]", "hosts={b: {}}", "cluster.listen=10.0.0.1")
    flags = [word for setting in settings for word in ("--set", setting)]
    result = plan(model, *flags, "--hosts", "main=2xH100-80GB,b=1xL4-24GB")
    assert result.exit_code == 0, result.output
    assert "preprocessing sends up to 50 MB to image_encoder on another host for one request" in result.stdout


def test_the_document_shows_the_plan_of_several_hosts(model: str, spread: tuple[str, ...]) -> None:
    document = (Path(__file__).parents[3] / "docs" / "placement.md").read_text()
    shown = document.partition("<!-- plan of several hosts -->\n```\n")[2].partition("```")[0]
    drawn = [line.rstrip() for line in plan(model, *spread, *DESCRIBED).stdout.splitlines()]
    first, last = drawn.index("replica    host  runs on     requests at a time  of the group"), len(drawn) - 2
    assert shown.splitlines() == drawn[first:last]
