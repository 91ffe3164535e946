"""The server from the wheel answers requests. It is started as in the usage guide, but outside of a checkout."""

from __future__ import annotations

import base64
import io
import shlex
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest
from container.recipe import read

from omni_pipeline.os_process import free_port
from tests.conftest import ROOT
from tests.installed.conftest import Installation, plain_environment
from tests.server import Server

# A path from the guide, which does not exist outside of a checkout.
LAYOUT = "configs/qwen3_omni_colocated.yaml"


@pytest.fixture(scope="module")
def server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    demo = ROOT / "demo" / "qwen3-omni-demo"
    server = Server(demo, directory, LAYOUT, speech=True, program=(installation.program,))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONPATH", "VIRTUAL_ENV"):
            patch.delenv(name, raising=False)
        patch.setenv("PATH", plain_environment()["PATH"])
        server.start()
    yield server
    assert server.stop() == 0


def test_it_answers_with_text_and_speech(server: Server, data: Path) -> None:
    picture = base64.b64encode((data / "cars.jpg").read_bytes()).decode()
    status, answer = server.post(
        {
            "messages": [{"role": "user", "content": "How many cars are there in the picture?"}],
            "images": [f"data:image/jpeg;base64,{picture}"],
            "modalities": ["text", "audio"],
            "max_tokens": 16,
        }
    )
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    assert message["content"] == "There are three cars."
    with wave.open(io.BytesIO(base64.b64decode(message["audio"]["data"]))) as sound:
        assert sound.getnframes() / sound.getframerate() > 0.5


def test_it_says_which_layout_it_took(server: Server, installation: Installation) -> None:
    note = f"There is no {LAYOUT} here: using the layout colocated, {installation.packages}/omni_pipeline/layouts/"
    assert note in server.log.read_text()


def test_bench_measures_it_and_asks_for_the_media_that_no_package_holds(
    server: Server, installation: Installation
) -> None:
    few = ("--url", server.url, "--requests", "1", "--warmup", "0", "--tokens", "2")
    done = installation.sgl_omni("bench", *few)
    assert done.returncode == 0, done.stderr
    done = installation.sgl_omni("bench", *few, "--input", "image")
    assert done.returncode == 1
    assert "in tests/data: choose a directory with --media-dir." in done.stderr


def test_health_check_of_the_container_recipe_passes_for_it_and_for_nothing_else(
    server: Server, installation: Installation
) -> None:
    check = shlex.join(read()[-1].last("HEALTHCHECK").command)
    port = server.url.rpartition(":")[2]
    for listened, status in (port, 0), (str(free_port()), 1):
        done = installation.run("sh", "-c", f"PATH={installation.root}/bin SGL_OMNI_LISTEN_PORT={listened} {check}")
        assert done.returncode == status, done.stderr
