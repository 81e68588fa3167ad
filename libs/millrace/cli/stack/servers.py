"""The servers beside the services: on the PATH, else inside an installed wheel."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from millrace.core.errors import ConfigError

from .topology import ProcessSpec

VERSION_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ServerProgram:
    """An executable that can be started."""

    path: Path
    version: str
    origin: str


def find_server(spec: ProcessSpec, search_path: str | None) -> ServerProgram:
    """The first good executable for `spec`. Raises `ConfigError` saying how to get one."""
    too_old = []
    for path, origin in _candidates(spec, search_path):
        version = server_version(path)
        if version and _numbers(version) >= _numbers(spec.min_version):
            return ServerProgram(path, version, origin)
        too_old.append(f"{path} is {version or 'not runnable here'}")
    reason = f" ({'; '.join(too_old)})" if too_old else ""
    raise ConfigError(
        f"no {spec.programs[0]} {spec.min_version} or newer{reason}; "
        f"install the package {spec.package}, put one on the PATH, or give a URL"
    )


def _candidates(spec: ProcessSpec, search_path: str | None) -> list[tuple[Path, str]]:
    found = []
    for program in spec.programs:
        if on_path := shutil.which(program, path=search_path):
            found.append((Path(on_path), "PATH"))
    if from_wheel := _find_in_package(spec.package, spec.programs):
        found.append((from_wheel, f"package {spec.package}"))
    return found


def _find_in_package(package: str, programs: tuple[str, ...]) -> Path | None:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate()))
        if file.name in programs and path.is_file() and os.access(path, os.X_OK):
            return path.resolve()
    return None


@lru_cache
def server_version(path: Path) -> str:
    """What `--version` answers, digits only; empty where the program does not run."""
    try:
        shown = subprocess.run(
            [str(path), "--version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"v=?(\d+(?:\.\d+)+)", shown.stdout)
    return match.group(1) if match else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")) if version else ()
