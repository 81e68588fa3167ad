"""Compiles the kernels for one instruction path, once per source, compiler and path."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from millrace.core.errors import ConfigError

from .instruction_paths import InstructionPath

SOURCES = Path(__file__).parent / "src"
# Libraries that an image brings along, for machines without a compiler; empty elsewhere.
SHIPPED = Path(__file__).parent / "built"
COMPILE_TIMEOUT_S = 300.0
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    # A fused product here and not there would make a token depend on the batch around it.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
)


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, else c++, g++ or clang++ on the PATH; None where there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def can_build(path: InstructionPath) -> bool:
    """True if `build_library` finds a library for `path`, or a compiler to make one."""
    return shipped_library(path) is not None or find_compiler() is not None


def shipped_library(path: InstructionPath) -> Path | None:
    """The library for `path` that was put beside these very sources, if one was."""
    library = _shipped_place(path)
    return library if library.is_file() else None


def ship_library(path: InstructionPath, report: Callable[[str], None] = lambda text: None) -> Path:
    """Builds the library for `path` into this package, whatever CPU this machine has.

    Raises `ConfigError` if there is no compiler or it fails; the message ends in its output.
    """
    return _built(_require_compiler(), path, _flags(path), _shipped_place(path), report)


def build_library(
    path: InstructionPath,
    folder: Path,
    report: Callable[[str], None] = lambda text: None,
    more_flags: Sequence[str] = (),
    timeout_s: float = COMPILE_TIMEOUT_S,
) -> Path:
    """The shared library for `path`: one that was shipped, else built under `folder`, once.

    `more_flags` go to the compiler last: builds for tests, of which none is shipped. Raises
    `ConfigError` if there is no compiler or it fails; the message ends in its output.
    """
    if not more_flags and (shipped := shipped_library(path)) is not None:
        return shipped
    compiler, flags = _require_compiler(), (*_flags(path), *more_flags)
    library = folder / _file_name(path, flags, _version(compiler))
    return _built(compiler, path, flags, library, report, timeout_s)


def _built(
    compiler: str,
    path: InstructionPath,
    flags: Sequence[str],
    library: Path,
    report: Callable[[str], None],
    timeout_s: float = COMPILE_TIMEOUT_S,
) -> Path:
    if library.is_file():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with _locked(library.parent / "build.lock"):
            if not library.is_file():
                report(f"building the CPU kernels for {path.name}, about 10 s")
                _compile(compiler, path, flags, library, timeout_s)
    except OSError as error:
        raise ConfigError(f"cannot keep the CPU kernels: {error}", field="cache_dir") from error
    return library


def _require_compiler() -> str:
    compiler = find_compiler()
    if compiler is None:
        raise ConfigError("no C++ compiler was found (c++, g++ or clang++)", field="backend")
    return compiler


def _flags(path: InstructionPath) -> tuple[str, ...]:
    return (*FLAGS, *path.compiler_flags)


def _shipped_place(path: InstructionPath) -> Path:
    # Not by the compiler, which need not be there when it is looked for.
    return SHIPPED / _file_name(path, _flags(path), "")


def _compile(
    compiler: str, path: InstructionPath, flags: Sequence[str], library: Path, timeout_s: float
) -> None:
    partial = library.with_suffix(f".{os.getpid()}.part")
    sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
    command = [compiler, *flags, "-o", str(partial), *sources]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise ConfigError(
                f"the CPU kernels do not compile for {path.name}: {done.stderr.strip()[-2000:]}",
                field="backend",
            )
        with partial.open("rb") as file:
            # Moved to its place before it is on the disk, it could be found there half-written.
            os.fsync(file.fileno())
        partial.replace(library)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"compiling the CPU kernels took over {timeout_s:.0f} s", field="backend"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _version(compiler: str) -> str:
    return subprocess.run(
        [compiler, "--version"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=30,
        check=False,
    ).stdout


def _file_name(path: InstructionPath, flags: Sequence[str], compiler_version: str) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in (compiler_version, *flags):
        digest.update(part.encode() + b"\0")
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return f"{path.name}-{digest.hexdigest()}.so"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds an exclusive lock: two workers that start at once build it once."""
    with file.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
