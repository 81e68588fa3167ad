"""Looks at this machine before anything is installed. Standard library only.

Says what is missing, what will be downloaded and how large it is. Exits with 1 where set-up
cannot work; warnings do not count.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import socket
import sys

MIN_PYTHON = (3, 11)
GIB = 1 << 30
MIN_MEMORY_BYTES = 3 * GIB
# Installed size of everything with torch's CPU build, and with its CUDA build, plus the model.
CPU_DISK_BYTES = 3 * GIB
CUDA_DISK_BYTES = 10 * GIB
PORTS = ((8080, "--http-port"), (50051, "--grpc-port"))

DOWNLOADS = """\
To be downloaded, once:
  Python packages        about 350 MB
  torch, CPU build       about 200 MB    (its CUDA build, on Linux: about 3 GB)
  default model          about 93 MB     (at the first start)\
"""
CPU_TORCH_HINT = """\
No NVIDIA GPU is visible. On Linux pip takes torch's CUDA build by default. For the much smaller CPU
build point pip at an index that carries it, by pip's own settings, for example
  PIP_EXTRA_INDEX_URL=<the CPU index that PyTorch's install page names> make setup
or, for a mirror that has everything, PIP_INDEX_URL=<your index> make setup; pip's configuration
file works as well (pip config set global.extra-index-url ...).\
"""


def main() -> int:
    """Runs every check and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv", help="folder of the virtual environment")
    venv = parser.parse_args().venv
    is_first = not os.path.exists(os.path.join(venv, "bin", "python"))
    failures = check_python() + check_venv_module(is_first)
    warnings = check_tools() + check_disk(venv, is_first) + check_memory() + check_ports()
    for text in warnings:
        print("warning: " + text)
    for text in failures:
        print("cannot set up: " + text, file=sys.stderr)
    if failures:
        return 1
    if is_first:
        print(DOWNLOADS)
        if not has_nvidia_gpu() and sys.platform.startswith("linux"):
            print(CPU_TORCH_HINT)
    return 0


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


def check_disk(venv: str, is_first: bool) -> list[str]:
    """Room for the packages and the model."""
    if not is_first:
        return []
    folder = os.path.abspath(venv)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    needs_cuda = has_nvidia_gpu()
    needed = CUDA_DISK_BYTES if needs_cuda else CPU_DISK_BYTES
    if free >= needed:
        return []
    return [f"{free / GIB:.1f} GiB of disk are free, about {needed / GIB:.0f} GiB are needed"]


def check_memory() -> list[str]:
    """Memory for the services and the default model."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return []
    if total >= MIN_MEMORY_BYTES:
        return []
    return [
        f"{total / GIB:.1f} GiB of memory; the default model wants {MIN_MEMORY_BYTES // GIB} GiB"
    ]


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
