"""`ServerProcess` waits until the server is ready. If the server does not become ready, `ServerProcess` reports the
reason. After the end of the server, none of its processes is left.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from server_process import ServerProcess

SERVING = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

http.server.HTTPServer(("127.0.0.1", int(sys.argv[3])), Handler).serve_forever()
"""
BROKEN = "import sys; sys.exit('no checkpoint')"
SILENT = "import time; print('importing', flush=True); time.sleep(60)"
WITH_WORKER = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
{SERVING}
"""


def server(tmp_path: Path, program: str) -> ServerProcess:
    return ServerProcess([], tmp_path / "log", program=(sys.executable, "-c", program))


def test_it_serves_until_it_is_stopped(tmp_path: Path) -> None:
    with server(tmp_path, SERVING) as running:
        running.wait_until_ready(60)
        assert running.health() == (200, {})
        assert running.status is None
    assert running.status is not None
    assert not running.healthy()


def test_log_of_one_that_ends_is_in_the_error(tmp_path: Path) -> None:
    with (
        server(tmp_path, BROKEN) as running,
        pytest.raises(RuntimeError, match=r"ended with exit status 1:\nno checkpoint"),
    ):
        running.wait_until_ready(60)


def test_one_that_does_not_serve_in_time_is_ended(tmp_path: Path) -> None:
    with server(tmp_path, SILENT) as running:
        running.until(lambda: "importing" in running.log.read_text(), 60)
        with pytest.raises(TimeoutError, match="importing"):
            running.wait_until_ready(0.2)
        assert running.status is not None


def test_worker_that_stays_is_an_error_and_is_killed(tmp_path: Path) -> None:
    running = server(tmp_path, WITH_WORKER).start()
    running.wait_until_ready(60)
    _, worker = running.processes()
    with pytest.raises(RuntimeError, match="left behind"):
        running.stop()
    worker.wait(5)
