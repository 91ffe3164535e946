"""Replicas of groups run on the hosts that the configuration names. If settings contradict each other, the error
explains this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from omni_pipeline.config.schema import Config, convert
from omni_pipeline.contract.plan import WorkerPlan
from omni_pipeline.contract.stage_memory import Request
from omni_pipeline.cpu_detection import Cpu
from omni_pipeline.deployment.checkpoint import describe_checkpoint
from omni_pipeline.deployment.host_descriptions import described, parse_hosts
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.deployment.host_traffic import HostEdge, heavy_notes, host_edges
from omni_pipeline.deployment.resolve import Deployment, resolve
from omni_pipeline.errors import StartupError
from omni_pipeline.gpus import parse
from stages.topology import QWEN3_OMNI

RELEASED = Path(__file__).parents[2] / "data" / "qwen3_omni_30b"
CLUSTER = {"listen": "10.0.0.1"}


def deployed(
    groups: dict[str, Any], main: str = "", *, remote: dict[str, str] | None = None, **settings: Any
) -> Deployment:
    """The deployment of Qwen3-Omni with these groups. `main` and `remote` describe the GPUs of the hosts."""
    hosts: dict[str, Any] = {host: {} for group in groups.values() for host in group.get("hosts", []) if host != "main"}
    tree = {"model_path": "x", "groups": groups, "hosts": hosts, "cluster": CLUSTER, **settings}
    facts = {name: HostFacts(parse(gpus) if gpus else ()) for name, gpus in (remote or {}).items()}
    return resolve(convert(tree, Config, ""), parse(main) if main else (), facts)


def workers(*given: Any, **settings: Any) -> dict[str, WorkerPlan]:
    return {worker.name: worker for worker in deployed(*given, **settings).workers}


def test_replicas_run_on_the_hosts_of_their_group_in_turn() -> None:
    found = workers({"voice": {"replicas": 2, "hosts": ["b", "c"]}, "vocoder": {"replicas": 3, "hosts": ["main", "b"]}})
    assert [found[f"talker_ar@{replica}"].host for replica in range(2)] == ["b", "c"]
    assert [found[f"code_predictor@{replica}"].host for replica in range(2)] == ["b", "c"]
    assert [found[f"code2wav@{replica}"].host for replica in range(3)] == ["", "b", ""]
    assert {worker.host for worker in found.values() if not worker.group} == {""}


def test_one_replica_can_run_on_another_host() -> None:
    deployment = deployed({"voice": {"hosts": ["b"]}})
    assert deployment.hosts == ("b",)
    assert [worker.name for worker in deployment.workers_on("b")] == ["talker_ar@0", "code_predictor@0"]
    assert len(deployment.workers_on("")) == 7


def test_the_gpus_of_all_hosts_have_different_indices_and_the_entries_of_their_own_host() -> None:
    groups = {"voice": {"replicas": 2, "hosts": ["b", "c"]}}
    deployment = deployed(groups, "2xH100-80GB", remote={"c": "L4-24GB", "b": "2xH20-96GB"})
    assert [(gpu.index, gpu.host, gpu.number, gpu.device) for gpu in deployment.gpus] == [
        *((0, "", 0, "0"), (1, "", 1, "1")),
        *((2, "b", 0, "0"), (3, "b", 1, "1"), (4, "c", 0, "0")),
    ]
    talkers = [worker for worker in deployment.workers if worker.base_name == "talker_ar"]
    assert [(worker.gpus, worker.stages[0].gpus) for worker in talkers] == [(("0",), (2,)), (("0",), (4,))]
    assert deployment.layout[2] == "GPU 0 of b (H20-96GB): talker_ar, code_predictor"


def test_the_gpus_of_a_group_are_counted_on_each_host() -> None:
    groups = {"vocoder": {"replicas": 3, "hosts": ["main", "b", "b"], "gpus": [[0], [0], [1]]}}
    deployment = deployed(groups, "2xH100-80GB", remote={"b": "2xL4-24GB"})
    found = [worker for worker in deployment.workers if worker.group]
    assert [(worker.gpus, worker.stages[0].gpus) for worker in found] == [
        (("0",), (0,)),
        (("0",), (2,)),
        (("1",), (3,)),
    ]


def test_a_stage_without_gpus_of_its_group_uses_its_own_gpus_on_its_host() -> None:
    stages = {"talker_ar": {"gpus": [1]}}
    found = workers({"voice": {"hosts": ["b"]}}, "L4-24GB", remote={"b": "2xL4-24GB"}, stages=stages)
    assert found["talker_ar@0"].gpus == ("1",)
    assert found["code_predictor@0"].gpus == ("0",)


def test_colocated_stages_share_a_gpu_on_each_host() -> None:
    deployment = deployed(
        {"all": {"replicas": 2, "hosts": ["main", "b"]}}, "L4-24GB", remote={"b": "2xL4-24GB"}, colocate=True
    )
    found = {worker.name: worker for worker in deployment.workers}
    assert [found[f"gpu@{replica}"].stages[0].gpus for replica in range(2)] == [(0,), (1,)]


def test_a_stage_with_a_cache_does_not_wait_for_a_worker_on_another_host() -> None:
    found = workers({"vocoder": {"hosts": ["b"]}}, "L4-24GB", remote={"b": "L4-24GB"})
    assert found["code2wav@0"].gpus == found["thinker"].gpus
    assert "code2wav@0" not in found["thinker"].after
    assert "image_encoder" in found["thinker"].after


def test_memory_budgets_are_added_up_on_each_host() -> None:
    stages = {"thinker": {"memory": 0.8}, "code2wav": {"memory": 0.8}}
    assert workers({"vocoder": {"hosts": ["b"]}}, "L4-24GB", remote={"b": "L4-24GB"}, stages=stages)
    with pytest.raises(StartupError, match=r"The memory budgets on GPU 0 of b \(L4-24GB\) add up to 1.6"):
        workers({"vocoder": {"replicas": 2, "hosts": ["b"]}}, "L4-24GB", remote={"b": "L4-24GB"}, stages=stages)


def test_the_device_of_a_stage_depends_on_its_own_hosts() -> None:
    found = workers({"vocoder": {"hosts": ["b"]}}, "", remote={"b": "L4-24GB"})
    assert (found["thinker"].stages[0].device, found["code2wav@0"].stages[0].device) == ("cpu", "cuda")


def test_a_host_that_has_not_joined_is_unknown_and_its_stages_are_planned_for_a_cpu() -> None:
    groups = {"voice": {"replicas": 2, "hosts": ["main", "b"], "gpus": [[1], [7]]}, "vocoder": {"hosts": ["b"]}}
    stages = {"code2wav": {"memory": 0.5, "gpus": [3], "device": "cuda"}}
    deployment = deployed(groups, "2xL4-24GB", stages=stages)
    assert deployment.unknown_hosts == ("b",)
    found = {worker.name: worker.stages[0] for worker in deployment.workers}
    assert [(found[name].device, found[name].gpus) for name in ("talker_ar@0", "talker_ar@1", "code2wav@0")] == [
        *(("cuda", (1,)), ("cpu", ()), ("cpu", ()))
    ]


def test_a_host_whose_stages_are_left_out_is_not_needed() -> None:
    deployment = deployed({"voice": {"hosts": ["b"]}}, text_only=True)
    assert (deployment.hosts, deployment.unknown_hosts) == ((), ())


def test_facts_travel_as_msgpack() -> None:
    facts = HostFacts(parse("2xH100-80GB"), 2**38, {0: 2**30, 1: 0}, Cpu(64, bfloat16=True))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=HostFacts) == facts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hosts": {"b": {}}, "groups": {"voice": {"hosts": ["bb"]}}}, "groups.voice.hosts: .* did you mean b?"),
        (
            {"groups": {"voice": {"hosts": ["b"]}}},
            "groups.voice.hosts: there is no host b in the setting 'hosts'; known here: main",
        ),
        ({"hosts": {"b": {}, "c": {}}, "groups": {"voice": {"hosts": ["b"]}}}, "hosts.c: no group runs on this host"),
        ({"hosts": {"b!": {}}}, "hosts: 'b!' is not a name of a host"),
        ({"hosts": {"main": {}}}, "hosts.main: the name main means the host of this server"),
        ({"hosts": {"b": {"listen": "::"}}}, "hosts.b.listen: other hosts cannot connect to ::"),
        (
            {"hosts": {"b": {}, "c": {}}, "groups": {"voice": {"hosts": ["b", "c"]}}},
            "groups.voice.hosts: there are 2 hosts in the list, but there is only 1 replica",
        ),
        (
            {"hosts": {"b": {}}, "groups": {"voice": {"hosts": ["b"]}}, "cluster": {}},
            "cluster.listen: set the address of this machine",
        ),
        ({"cluster": {"listen": "0.0.0.0"}}, "cluster.listen: other hosts cannot connect to 0.0.0.0"),
        ({"cluster": {"listen": "tcp://10.0.0.1"}}, "cluster.listen: .* is not an IP address"),
        ({"cluster": {"ports": "20001"}}, "cluster.ports: '20001' is not a range of ports"),
        ({"cluster": {"ports": "300-200"}}, "cluster.ports: '300-200' is not a range of ports between 1 and 65535"),
        ({"cluster": {"ports": "19000-20001"}}, "cluster.ports: 19000-20001 includes port 20000"),
        (
            {"cluster": {"ray_address": "auto"}},
            "cluster.ray_address: there is no host on which Ray could start an agent",
        ),
        (
            {
                "hosts": {"b": {}},
                "groups": {"voice": {"hosts": ["b"]}},
                "cluster": {"listen": "10.0.0.1", "ray_address": "ray://10.0.0.1:10001"},
            },
            "cluster.ray_address: 'ray://10.0.0.1:10001' is not the address of a Ray cluster",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contradictions_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        resolve(convert({"model_path": "x", "cluster": CLUSTER, **settings}, Config, ""), ())


def test_the_replicas_of_a_stage_need_the_same_kind_of_device() -> None:
    groups = {"vocoder": {"replicas": 2, "hosts": ["main", "b"]}}
    with pytest.raises(StartupError, match=r"stages.code2wav.device: .* main has a GPU and b has none"):
        deployed(groups, "L4-24GB", remote={"b": ""})
    with pytest.raises(StartupError, match=r"no GPU is visible on b: use --device cpu"):
        deployed(groups, "L4-24GB", remote={"b": ""}, device="cuda")


def test_a_gpu_that_a_host_lacks_is_refused_by_the_name_of_the_host() -> None:
    with pytest.raises(StartupError, match=r"groups.vocoder.gpus: there is no GPU 1 of b; there is only GPU 0"):
        deployed({"vocoder": {"hosts": ["b"], "gpus": [[1]]}}, "2xL4-24GB", remote={"b": "L4-24GB"})
    stages = {"code2wav": {"gpus": [1]}}
    with pytest.raises(StartupError, match=r"stages.code2wav.gpus: there is no GPU 1 of b; there is only GPU 0"):
        deployed({"vocoder": {"hosts": ["b"]}}, "2xL4-24GB", remote={"b": "L4-24GB"}, stages=stages)


def test_the_ports_are_a_range() -> None:
    assert Config().cluster.port_range is None
    assert convert({"ports": "20001-20199"}, type(Config().cluster), "").port_range == range(20001, 20200)


def test_hosts_are_described_like_gpus() -> None:
    facts = parse_hosts("main=2xH100-80GB, b=H20-96GB,L4-24GB,RAM-256GiB, c=cpu")
    assert [gpu.name for gpu in facts["main"].gpus] == ["H100-80GB"] * 2
    assert [gpu.index for gpu in facts["b"].gpus] == [0, 1]
    assert (facts["b"].ram, facts["main"].ram, facts["c"]) == (256 * 2**30, None, HostFacts())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2xH100-80GB", "write each host as NAME=GPUS"),
        ("main=", "write each host as NAME=GPUS"),
        ("b=cpu,b=cpu", "b is described twice"),
        ("b=cpu,L4-24GB", "write GPUs or cpu, but not both"),
        ("b=RAM-much", "RAM-much is not a size of RAM"),
        ("b=fast", "Cannot read the GPU description 'fast'"),
    ],
)
def test_a_description_that_cannot_be_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        parse_hosts(text)


def test_a_described_host_must_be_in_the_configuration() -> None:
    config = convert({"hosts": {"b": {}}}, Config, "")
    with pytest.raises(StartupError, match=r"--hosts bb: there is no host bb in the setting 'hosts'; did you mean b\?"):
        described(None, "bb=cpu", config)
    with pytest.raises(StartupError, match=r"--hosts and --gpus both describe main"):
        described("L4-24GB", "main=cpu", config)


def edges(groups: dict[str, Any], main: str, remote: dict[str, str], request: Request) -> dict[str, HostEdge]:
    """The edges between hosts, by the names of their stages."""
    spec = QWEN3_OMNI.checkpoint
    assert spec is not None
    checkpoint = describe_checkpoint(str(RELEASED), spec)
    found = host_edges(deployed(groups, main, remote=remote), checkpoint, request)
    return {f"{edge.source} {edge.target}": edge for edge in found}


def test_the_edges_between_hosts_are_found() -> None:
    assert edges({"voice": {"replicas": 2}}, "L4-24GB", {}, Request()) == {}
    groups = {"voice": {"replicas": 2, "hosts": ["main", "b"]}, "vocoder": {"hosts": ["b"]}}
    found = edges(groups, "L4-24GB", {"b": "L4-24GB"}, Request())
    assert {name: (edge.routes, edge.share) for name, edge in found.items()} == {
        "thinker talker_ar": ((("", "b"),), 0.5),
        "preprocessing talker_ar": ((("", "b"),), 0.5),
        "code_predictor code2wav": ((("", "b"),), 0.5),
        "code2wav collector": ((("b", ""),), 1.0),
    }
    assert heavy_notes(found.values()) == ()


def test_replicas_of_one_group_are_never_apart_for_a_request() -> None:
    found = edges({"all": {"replicas": 2, "hosts": ["main", "b"]}}, "", {"b": ""}, Request())
    assert found.keys() == {
        *("gateway preprocessing", "preprocessing collector", "decode collector", "code2wav collector")
    }
    assert {edge.share for edge in found.values()} == {0.5}
    assert found["gateway preprocessing"].traffic is None


def test_encoders_apart_from_preprocessing_are_heavy() -> None:
    found = edges({"encoders": {"hosts": ["b"]}}, "L4-24GB", {"b": "L4-24GB"}, Request(prompt_tokens=2048))
    [picture, *_] = heavy_notes(found.values())
    assert picture == (
        "preprocessing sends up to 50 MB to image_encoder on another host for one request: put preprocessing and "
        "image_encoder on the same host."
    )
