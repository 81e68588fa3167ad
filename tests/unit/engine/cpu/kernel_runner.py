"""Ways to call the kernels from a test: in this process, or built for ARM under an emulator."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from millrace.engine.kernels.cpu.build import FLAGS, SOURCES, build_library, find_compiler
from millrace.engine.kernels.cpu.instruction_paths import PATHS, InstructionPath, choose_path
from millrace.engine.kernels.cpu.library import Kernels
from tests.unit.engine.cpu import sanitizer

CROSS_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64-static"
IMAGE_RUNNER = Path(__file__).parents[3] / "cpp" / "run_image.cpp"
COMPILE_TIMEOUT_S = 300
CALL_TIMEOUT_S = 120

TEAM = object()


class KernelRunner(Protocol):
    """One build of the kernels. `is_slow` asks for small shapes."""

    path: InstructionPath
    is_slow: bool

    def call(
        self, function: str, *args: Any, memory: Sequence[Any] = (), team_size: int = 2
    ) -> int:
        """Calls a function of millrace_cpu.h by name.

        Arguments are numbers, numpy arrays, ctypes structures, None or `TEAM`; `memory` lists all
        that structures point to. `mr_model_run` takes an mr_model in place of a made model.
        """
        ...


class NativeRunner:
    """The kernels in this process."""

    is_slow = False

    def __init__(self, path: InstructionPath, library: Path) -> None:
        self.path = path
        self.library = library
        self._by_team_size: dict[int, Kernels] = {}

    def call(
        self, function: str, *args: Any, memory: Sequence[Any] = (), team_size: int = 2
    ) -> int:
        """See `KernelRunner`."""
        del memory
        kernels = self.kernels(team_size)
        given = [_native(kernels, arg) for arg in args]
        if function != "mr_model_run":
            return int(getattr(kernels.c, function)(*given))
        model = ctypes.c_void_p()
        refused = int(kernels.c.mr_model_create(given[0], ctypes.byref(model)))
        if refused:
            return refused
        try:
            return int(kernels.c.mr_model_run(model, *given[1:]))
        finally:
            kernels.c.mr_model_destroy(model)

    def kernels(self, team_size: int = 2) -> Kernels:
        """The library with a team of this size."""
        if team_size not in self._by_team_size:
            self._by_team_size[team_size] = Kernels(self.library, self.path.name, team_size)
        return self._by_team_size[team_size]


def _native(kernels: Kernels, arg: Any) -> Any:
    if arg is TEAM:
        return kernels.team
    if isinstance(arg, np.ndarray):
        return arg.ctypes.data
    return ctypes.byref(arg) if isinstance(arg, ctypes.Structure) else arg


class EmulatedRunner:
    """The kernels as a program for 64-bit ARM under qemu; memory is carried over with each call."""

    is_slow = True

    def __init__(self, path: InstructionPath, program: Path) -> None:
        self.path = path
        self._program = program

    def call(
        self, function: str, *args: Any, memory: Sequence[Any] = (), team_size: int = 2
    ) -> int:
        """See `KernelRunner`."""
        kinds = (np.ndarray, ctypes.Structure, ctypes.Array)
        pieces = [*(arg for arg in args if isinstance(arg, kinds)), *memory]
        views = [_bytes_of(piece) for piece in pieces]
        starts = [view.ctypes.data for view in views]
        image = [struct.pack("<q", len(function)), function.encode()]
        image += [struct.pack("<qq", team_size, len(views))]
        for view in views:
            image += [struct.pack("<q", len(view)), view.tobytes()]
        pointers = _pointers(pieces, views, starts)
        image += [struct.pack("<q", len(pointers)), *(struct.pack("<4q", *p) for p in pointers)]
        image += [struct.pack("<q", len(args)), *(_argument(arg, starts) for arg in args)]
        done = subprocess.run(
            [EMULATOR, str(self._program)],
            input=b"".join(image),
            capture_output=True,
            timeout=CALL_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        place = 8
        for piece, view in zip(pieces, views, strict=True):
            # Structures hold the addresses of the other process.
            if isinstance(piece, np.ndarray) and view.flags.writeable:
                view[:] = np.frombuffer(done.stdout, np.uint8, len(view), place)
            place += len(view)
        return int(struct.unpack_from("<q", done.stdout)[0])


def _bytes_of(piece: Any) -> Any:
    if isinstance(piece, np.ndarray):
        return piece.reshape(-1).view(np.uint8)
    return np.frombuffer(piece, np.uint8)


def _pointers(
    pieces: Sequence[Any], views: Sequence[Any], starts: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """Where structures hold an address inside of another piece."""
    found = []
    for index, piece in enumerate(pieces):
        if isinstance(piece, np.ndarray):
            continue
        for offset, word in enumerate(views[index].view(np.int64).tolist()):
            for target, start in enumerate(starts):
                if start <= word < start + len(views[target]):
                    found.append((index, 8 * offset, target, word - start))
    return found


def _argument(arg: Any, starts: Sequence[int]) -> bytes:
    if arg is TEAM:
        return struct.pack("<qq", 2, 0)
    if isinstance(arg, np.ndarray | ctypes.Structure | ctypes.Array):
        return struct.pack("<qq", 1, starts.index(_bytes_of(arg).ctypes.data))
    return struct.pack("<qq", 0, arg or 0)


def runnable_paths() -> list[str]:
    """Paths that tests try here: those of this machine, and ARM's by emulation."""
    return [path.name for path in PATHS if path.machine in (platform.machine(), "aarch64")]


def why_not_runnable(name: str) -> str:
    """Why the path cannot be run here; empty where it can."""
    path = next(path for path in PATHS if path.name == name)
    if path.machine != platform.machine():
        tools = [tool for tool in (CROSS_COMPILER, EMULATOR) if shutil.which(tool) is None]
        return f"there is no {' and no '.join(tools)}" if tools else ""
    if find_compiler() is None:
        return "there is no C++ compiler"
    try:
        choose_path(name)
    except Exception as error:
        return str(error)
    return ""


def make_runner(name: str, folder: Path) -> KernelRunner:
    """The kernels for a path that `why_not_runnable` has nothing against, built under `folder`."""
    path = next(path for path in PATHS if path.name == name)
    if path.machine == platform.machine():
        library = build_library(path, folder, more_flags=sanitizer.build_flags())
        return NativeRunner(path, library)
    return EmulatedRunner(path, build_image_runner(path, folder))


def build_image_runner(path: InstructionPath, folder: Path) -> Path:
    """run_image.cpp with the kernels for `path`, by the cross compiler, without a warning."""
    flags = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]
    flags += [*path.compiler_flags, "-static", "-Wall", "-Wextra", "-Werror"]
    digest = hashlib.blake2b(" ".join(flags).encode(), digest_size=8)
    for source in sorted([IMAGE_RUNNER, *SOURCES.iterdir()]):
        digest.update(source.read_bytes())
    program = folder / f"{path.name}-{digest.hexdigest()}.run_image"
    if program.is_file():
        return program
    sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
    partial = program.with_suffix(f".{os.getpid()}.part")
    done = subprocess.run(
        [CROSS_COMPILER, *flags, f"-I{SOURCES}", "-o", str(partial), str(IMAGE_RUNNER), *sources],
        capture_output=True,
        text=True,
        timeout=COMPILE_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    partial.replace(program)
    return program
