"""Looks at this machine before anything is installed. Standard library only.

Says what is missing, what will be downloaded and how large it is. Exits with 1 where set-up
cannot work; warnings do not count.
"""

from __future__ import annotations

import argparse
import configparser
import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

MIN_PYTHON = (3, 11)
GB = 10**9
# The stack with the default model has 0.8 GB of its own, at its first start and later.
MIN_MEMORY_BYTES = 2 * GB
# Settings of pip that say where packages come from.
PIP_PLACES = ("index-url", "extra-index-url", "find-links")
SYSTEM_FILES = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf")
PORTS = ((8080, "--http-port"), (50051, "--grpc-port"))


@dataclass(frozen=True)
class TorchBuild:
    """A build of torch: its download, and the disk that all of Millrace takes with it.

    `disk_bytes` holds the virtual environment, pip's cache and the default model.
    """

    name: str
    download: str
    disk_bytes: int


CPU = TorchBuild("CPU build", "about 200 MB", 3 * GB)
CUDA = TorchBuild("CUDA build", "about 3 GB", 10 * GB)

DOWNLOADS = """\
To be downloaded, once:
  Python packages        about 100 MB
  torch                  {torch}
  default model          about 93 MB     (at the first start)\
"""
CPU_HINT = """\
No NVIDIA GPU is visible, and plain pip takes torch's CUDA build here. For the CPU build stop this
with Ctrl-C and type: make run TORCH=cpu    (it comes from PyTorch's own index)\
"""


def main() -> int:
    """Runs every check and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv", help="folder of the virtual environment")
    parser.add_argument("--torch", default="", choices=("", "cpu"), help="the build to be taken")
    args = parser.parse_args()
    is_first = not os.path.exists(os.path.join(args.venv, "bin", "python"))
    places = pip_places(os.environ)
    builds = torch_builds(args.torch, sys.platform, places)
    failures = check_python() + check_venv_module(is_first)
    warnings = check_tools() + check_memory() + check_ports()
    warnings += check_disk(args.venv, builds) if is_first else []
    for text in warnings:
        print("warning: " + text)
    for text in failures:
        print("cannot set up: " + text, file=sys.stderr)
    if failures:
        return 1
    if is_first:
        print(DOWNLOADS.format(torch=describe(builds, places)))
        if builds == (CUDA,) and not has_nvidia_gpu():
            print(CPU_HINT)
    return 0


def torch_builds(asked: str, system: str, places: Sequence[str]) -> tuple[TorchBuild, ...]:
    """The build that pip will take, or those between which its own settings choose."""
    if asked == "cpu" or not system.startswith("linux"):
        return (CPU,)
    return (CPU, CUDA) if places else (CUDA,)


def pip_places(environ: Mapping[str, str]) -> list[str]:
    """The settings by which this user chooses where pip takes packages from."""
    values = dict(_file_settings(environ))
    for name in PIP_PLACES:
        if value := environ.get("PIP_" + name.upper().replace("-", "_")):
            values[name] = value
    return [name for name in PIP_PLACES if values.get(name)]


def _file_settings(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    home = environ.get("HOME", "")
    config_home = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    files = [*SYSTEM_FILES, os.path.join(home, ".pip", "pip.conf")]
    files += [os.path.join(config_home, "pip", "pip.conf"), environ.get("PIP_CONFIG_FILE", "")]
    for file in files:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            # pip will tell.
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                yield from ((key.replace("_", "-"), text) for key, text in parser.items(section))


def describe(builds: Sequence[TorchBuild], places: Sequence[str]) -> str:
    """What is downloaded of torch, as far as that can be known."""
    sizes = " or ".join(f"{build.download} ({build.name})" for build in builds)
    return sizes if len(builds) == 1 else f"{sizes}, by pip's own settings: {', '.join(places)}"


def check_python() -> list[str]:
    """Millrace needs a recent Python."""
    if sys.version_info[:2] >= MIN_PYTHON:
        return []
    wanted = ".".join(map(str, MIN_PYTHON))
    found = platform.python_version()
    return [f"this is Python {found}, {wanted} or newer is needed: PYTHON=python3.12 make setup"]


def check_venv_module(is_first: bool) -> list[str]:
    """Some distributions package venv on its own."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if not missing or not is_first:
        return []
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return [
        f"Python has no module {missing[0]}; on Debian or Ubuntu: apt install python{version}-venv"
    ]


def check_tools() -> list[str]:
    """make brought us here mostly; a compiler is a help, not a need."""
    found = []
    if shutil.which("make") is None:
        found.append("make is not installed; the commands in the Makefile work without it")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        found.append("no C++ compiler: everything works, kernels that need one are left out")
    return found


def check_disk(venv: str, builds: Sequence[TorchBuild]) -> list[str]:
    """Room for the packages and the model."""
    folder = os.path.abspath(venv)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    return [
        f"{free / GB:.1f} GB of disk are free, about {build.disk_bytes // GB} GB are needed "
        f"with torch's {build.name}"
        for build in builds
        if free < build.disk_bytes
    ]


def check_memory() -> list[str]:
    """Memory for the services and the default model."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return []
    if total >= MIN_MEMORY_BYTES:
        return []
    return [f"{total / GB:.1f} GB of memory; the default model wants {MIN_MEMORY_BYTES // GB} GB"]


def check_ports() -> list[str]:
    """The two public ports; the rest are picked among free ones."""
    found = []
    for port, flag in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found.append(f'port {port} is in use; choose another: make run ARGS="{flag} PORT"')
    return found


def has_nvidia_gpu() -> bool:
    """True where the driver shows a GPU."""
    return os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None


if __name__ == "__main__":
    sys.exit(main())
