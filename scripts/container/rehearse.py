#!/usr/bin/env python3
"""Runs the steps of the Containerfile without a container engine, on a copy-on-write view of this machine.

    sudo .venv/bin/python scripts/container/rehearse.py

Each build stage gets an overlay of this machine's root directory, so that the machine itself is not changed. The script
follows the instructions as written, with two exceptions. It looks up apt packages instead of installing them. It uses
the dependencies of the checkout's environment instead of downloading them (5 GB). Then the image's command serves the
demo model as process 1, with the image's user and variables. When the image's health check has passed, the server must
answer a question, and it must end when it gets SIGTERM.

The script cannot test three things: the base image itself (which has another Python), a GPU, and the container engine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from container.recipe import BuildStage, Instruction, read  # noqa: E402

from omni_pipeline.os_process import free_port  # noqa: E402

MODEL = ROOT / "demo" / "qwen3-omni-demo"
SECONDS = 180
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # the PATH of Ubuntu's images


class Image:
    """The file system in which one build stage is carried out. Its root is the directory `root`."""

    def __init__(self, stage: BuildStage, directory: Path) -> None:
        self.stage = stage
        self.root, self.changes = directory / "root", directory / "changes"
        work = directory / "work"
        for path in (self.root, self.changes, work):
            path.mkdir(parents=True)
        layers = f"lowerdir=/,upperdir={self.changes},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        for name in ("dev", "sys", "proc"):
            subprocess.run(["mount", "--rbind", f"/{name}", self.root / name], check=True)
        self.environment = {"PATH": PATH, "HOME": os.environ["HOME"]}
        self.directory = "/"
        self.user = "root"

    def build(self, others: dict[str, Image]) -> None:
        """Follow the instructions of the stage."""
        for instruction in self.stage.instructions:
            print(f"  {instruction.verb} {instruction.text}"[:160], flush=True)
            match instruction.verb:
                case "RUN":
                    for command in instruction.commands:
                        self._run(command)
                case "COPY":
                    self._copy(instruction, others)
                case "ENV":
                    self.environment |= self._variables(instruction)
                case "WORKDIR":
                    self.directory = instruction.text
                    self.inside(instruction.text).mkdir(parents=True, exist_ok=True)
                case "USER":
                    self.user = instruction.text

    def inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` in the image, with the image's user and variables."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        change = ["chroot", f"--userspec={self.user}:{self.user}", str(self.root)]
        return [*change, "/usr/bin/env", "--ignore-environment", f"--chdir={self.directory}", *variables, *command]

    def _variables(self, env: Instruction) -> dict[str, str]:
        """The variables that an ``ENV`` sets, with references to earlier variables replaced by their values."""
        set_here = env.variables
        for known, earlier in self.environment.items():
            set_here = {name: value.replace(f"${{{known}}}", earlier) for name, value in set_here.items()}
        return set_here

    def _run(self, command: str) -> None:
        if command.startswith(("apt-get update", "rm -rf /var/lib/apt")):
            print("    not run")
        elif command.startswith("apt-get install"):
            packages = [word for word in command.split()[2:] if not word.startswith("-")]
            subprocess.run(["apt-cache", "show", *packages], check=True, stdout=subprocess.DEVNULL)
            print(f"    not run; apt has these packages: {', '.join(packages)}")
        elif "--requirement" in command:
            self._borrow()
            print("    checked against the packages of this checkout's environment; nothing is downloaded")
            self._shell(f"{command} --no-index --no-deps")
        else:
            self._shell(command)

    def _shell(self, command: str) -> None:
        subprocess.run(self.enter("/bin/sh", "-c", command), check=True, stdout=subprocess.DEVNULL)

    def _borrow(self) -> None:
        """Make the packages of this Python importable in the image, even if the image's user may not read their
        directory.
        """
        spec = importlib.util.find_spec("sglang")
        assert spec is not None
        assert spec.origin is not None
        packages = Path(spec.origin).parents[1]
        [own] = self.inside("/opt/omni/lib").glob("python*/site-packages")
        (own / "borrowed.pth").write_text(f"import site; site.addsitedir({str(packages)!r})\n")
        for above in packages.parents:
            inside = self.inside(str(above))
            inside.chmod(inside.stat().st_mode | 0o555)

    def _copy(self, instruction: Instruction, others: dict[str, Image]) -> None:
        *sources, target = instruction.words
        origin = ROOT
        if sources[0].startswith("--from="):
            origin = others[sources.pop(0).removeprefix("--from=")].root
        into = self.inside(os.path.join(self.directory, target))
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, into, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, into)

    def files(self) -> set[str]:
        """The files that are in the image but not on this machine, without volumes and temporary files."""
        volumes = [volume.text for volume in self.stage.all("VOLUME")]
        found = {f"/{path.relative_to(self.changes)}" for path in self.changes.rglob("*") if not path.is_dir()}
        return {path for path in found if not path.startswith((*volumes, "/tmp/"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is None:
        sys.exit(rehearse_apart())
    images: dict[str, Image] = {}
    for number, stage in enumerate(read()):
        print(f"stage {stage.name or number}", flush=True)
        images[stage.name] = Image(stage, arguments.inside / str(number))
        images[stage.name].build(images)
    serve(images[""])


def rehearse_apart() -> int:
    """Run this script again in a separate mount namespace. No other process sees the mounts in this namespace, and the
    mounts end with the namespace.
    """
    if os.geteuid() != 0:
        sys.exit("Mounting needs root: run this script with sudo.")
    directory = Path(tempfile.mkdtemp(prefix="omni-image-"))
    try:
        again = [sys.executable, __file__, "--inside", str(directory)]
        return subprocess.run(["unshare", "--mount", *again], check=False).returncode
    finally:
        shutil.rmtree(directory)


def serve(image: Image) -> None:
    """Run the image's command as a container engine would, ask the server a question, and stop the server."""
    stage, port = image.stage, free_port()
    image.environment["SGL_OMNI_LISTEN_PORT"] = str(port)
    command = [*stage.last("ENTRYPOINT").command, *stage.last("CMD").command]
    command += ["--model-path", str(MODEL), "--config", "colocated", "--device", "cpu", "--host", "0.0.0.0"]
    check = image.enter(*stage.last("HEALTHCHECK").command)
    before = image.files()
    print(f"as process 1 and user {image.user}: {' '.join(command)}", flush=True)
    fresh_proc = f'mount -t proc proc {image.root}/proc && exec "$@"'
    first = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "sh", "-c", fresh_proc, "sh"]
    with subprocess.Popen([*first, *image.enter(*command)]) as namespace:
        try:
            deadline = time.monotonic() + SECONDS
            while subprocess.run(check, capture_output=True, check=False).returncode != 0:
                if namespace.poll() is not None or time.monotonic() > deadline:
                    sys.exit("The health check did not pass.")
                time.sleep(1)
            print("the health check passes", flush=True)
            print(f"the server answers: {ask(port)}", flush=True)
            [server] = Path(f"/proc/{namespace.pid}/task/{namespace.pid}/children").read_text().split()
            os.kill(int(server), signal.SIGTERM)
            status = namespace.wait(60)
        finally:
            namespace.kill()
    written = {path for path in image.files() - before if "__pycache__" not in path}
    print(f"the server exited with {status}; files written outside its volume: {', '.join(sorted(written)) or 'none'}")
    sys.exit(status != 0 or bool(written))


def ask(port: int) -> str:
    body = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 16}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: str = json.load(answer)["choices"][0]["message"]["content"]
        return content


if __name__ == "__main__":
    main()
