"""Finds a CUDA toolkit directory, or makes a toolkit directory from the environment's Python packages.

NVIDIA's packages contain all files that are needed to compile kernels, but with paths and names that libraries do not
expect. The files of older packages are in several directories. The directory of libraries is called ``lib`` instead of
``lib64``, and contains ``libcudart.so.13`` but no ``libcudart.so``. So this module makes a directory of links that
looks like an installed toolkit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Parts that every toolkit must have: the compiler, the headers, and the library under the name that linkers look for.
PARTS = ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so")

# The directory in which installers put the toolkit.
USUAL = Path("/usr/local/cuda")

# Increase this number when `assemble` makes toolkits in a different way. Older toolkits are then not used any more.
_FORM = "1"

# The headers of CCCL refuse a compiler whose release differs from the release of the runtime's headers. Installed
# packages often differ in this way: torch pins the runtime, but nothing pins the compiler. Within a major version, a
# newer compiler accepts older headers.
_MIXTURE = 'INCLUDES += "-DCCCL_DISABLE_CTK_COMPATIBILITY_CHECK" $(_SPACE_)\n'

_DRIVER = "libcuda.so.1"


def lacking(home: Path) -> list[str]:
    """The parts of a toolkit that a directory lacks."""
    return [part for part in PARTS if not (home / part).exists()]


def installed(environment: Mapping[str, str]) -> Path | None:
    """The complete toolkit that contains the ``nvcc`` on ``PATH``. If there is no such toolkit, the complete toolkit in
    the usual directory.

    Incomplete directories do not count. For example, if ``nvcc`` is a wrapper in ``/usr/local/bin``, the directory
    above ``bin`` is not a toolkit.
    """
    nvcc = shutil.which("nvcc", path=environment.get("PATH", ""))
    places = [] if nvcc is None else [Path(nvcc).parent.parent, Path(nvcc).resolve().parent.parent]
    return next((home for home in (*places, USUAL) if not lacking(home)), None)


def packages() -> list[Path]:
    """Directories of the environment's ``nvidia`` packages that together form a toolkit; empty if parts are missing.

    Packages for CUDA 13 share a directory, ``nvidia/cu13``. Each package for an older CUDA has its own directory, such
    as ``nvidia/cuda_nvcc``.
    """
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    directories = [directory for place in places if place.is_dir() for directory in sorted(place.iterdir())]
    return toolkit_of(directories)


def toolkit_of(directories: Sequence[Path]) -> list[Path]:
    """The directories that together form a toolkit, with the compiler's directory first; empty if parts are missing."""
    compilers = [directory for directory in directories if (directory / "bin/nvcc").is_file()]
    for compiler in sorted(compilers, reverse=True):  # the newest compiler first
        own = [compiler]
        if not (compiler / "include/cuda_runtime.h").is_file():
            own += [each for each in directories if each != compiler and not re.fullmatch(r"cu\d+", each.name)]
        headers = any((each / "include/cuda_runtime.h").is_file() for each in own)
        if headers and any(each.glob("lib/libcudart.so*") for each in own):
            return own
    return []


def driver_library(environment: Mapping[str, str]) -> Path | None:
    """The CUDA driver's library, which is not part of a toolkit and has no fixed path; None if it is not found."""
    for directory in filter(None, environment.get("LD_LIBRARY_PATH", "").split(":")):
        if (Path(directory) / _DRIVER).exists():
            return Path(directory) / _DRIVER
    with contextlib.suppress(OSError):
        known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
        for line in known.splitlines():  # libcuda.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so.1
            name, _, path = line.strip().partition(" ")
            if name == _DRIVER and "64" in path and os.path.exists(path.rpartition(" ")[2]):
                return Path(path.rpartition(" ")[2])
    return None


def assemble(sources: Sequence[Path], environment: Mapping[str, str]) -> Path:
    """Make a toolkit directory of links to packages. All processes of this user with the same packages share this
    directory.

    Args:
        sources: The directories from `packages`.
        environment: Environment variables with the paths of the user's cache and the driver's library.
    """
    driver = driver_library(environment)
    cache = _private(
        Path(environment.get("XDG_CACHE_HOME") or _home(environment) / ".cache") / "omni-pipeline" / "cuda"
    )
    home = cache / _key(sources, driver)
    with _locked(cache / "lock"):
        if lacking(home):
            made = Path(tempfile.mkdtemp(prefix="new-", dir=cache))
            try:
                _fill(made, sources, driver)
                _put_in_place(made, home)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    return home


def _put_in_place(made: Path, home: Path) -> None:
    """Rename `made` to `home`. Does nothing if another process has put a complete toolkit there in the meantime.

    If the file system has no locks, several processes may call this function at the same time. So an incomplete toolkit
    at `home` is renamed before it is deleted. A slow deletion at `home` itself could remove files of another process's
    new toolkit.
    """
    while True:
        try:
            made.rename(home)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if not lacking(home):
            return
        old = Path(tempfile.mkdtemp(prefix="old-", dir=home.parent))
        with contextlib.suppress(FileNotFoundError):  # another process has renamed it
            home.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or tempfile.gettempdir())


def _private(directory: Path) -> Path:
    """Returns `directory`, which is created if it is missing. If other users can write to `directory`, returns a
    temporary directory.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
        if own and os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass
    # a temporary directory that a worker makes is removed after the run
    return Path(tempfile.mkdtemp(prefix="cuda-"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(sources: Sequence[Path], driver: Path | None) -> str:
    """A name that changes when the files of the toolkit change."""
    digest = hashlib.sha256(f"{_FORM} {driver}".encode())
    for source in sources:
        for directory in (source / part for part in ("bin", "lib", "include")):
            for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
                status = entry.lstat()
                digest.update(f"{entry} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _fill(home: Path, sources: Sequence[Path], driver: Path | None) -> None:
    for part in ("bin", "include", "nvvm"):
        _merge([source / part for source in sources if (source / part).is_dir()], home / part)
    libraries = home / "lib64"
    _merge([source / "lib" for source in sources if (source / "lib").is_dir()], libraries)
    for versioned in sorted(libraries.glob("lib*.so.*")):
        plain = libraries / (versioned.name.partition(".so.")[0] + ".so")
        if not plain.is_symlink():
            plain.symlink_to(versioned.name)
    (home / "lib").symlink_to("lib64")  # nvcc itself searches this directory
    if driver is not None:
        (libraries / "stubs").mkdir()
        (libraries / "stubs" / "libcuda.so").symlink_to(driver)
    if _release_of_compiler(home) != _release_of_headers(home):
        profile = home / "bin/nvcc.profile"
        text = profile.read_text()
        profile.unlink()
        profile.write_text(f"{text}\n{_MIXTURE}")


def _merge(sources: Sequence[Path], target: Path) -> None:
    """Make a new directory with links to the entries of `sources`. If several sources have a directory of the same
    name, link the files in these directories one by one.
    """
    target.mkdir()
    names = sorted({entry.name for source in sources for entry in source.iterdir()})
    for name in names:
        entries = [source / name for source in sources if (source / name).exists()]
        if len(entries) > 1 and all(entry.is_dir() for entry in entries):
            _merge(entries, target / name)
        else:
            (target / name).symlink_to(entries[0])


def _release_of_compiler(home: Path) -> tuple[int, int] | None:
    said = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return found and (int(found[1]), int(found[2]))


def _release_of_headers(home: Path) -> tuple[int, int] | None:
    text = (home / "include/cuda_runtime_api.h").read_text(errors="replace")
    found = re.search(r"#define\s+CUDART_VERSION\s+(\d+)", text)
    return found and (int(found[1]) // 1000, int(found[1]) % 1000 // 10)
