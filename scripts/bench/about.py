"""What a report is of: without it nobody can tell two of them apart."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from millrace.cli.version import millrace_version
from millrace.engine.machine import usable_cpus
from millrace.hub.byte_size import format_bytes

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
HERE = Path(__file__).parent
NAME_KEYS = ("model name", "Hardware", "CPU implementer")


def describe_run(model: str) -> dict[str, Any]:
    """Machine, model, date, version and commit, ready for JSON."""
    return {
        "model": model,
        "cpu": _field(CPU_INFO, NAME_KEYS) or platform.processor() or platform.machine(),
        "cores": usable_cpus(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, "
        f"Python {platform.python_version()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": millrace_version(),
        "commit": _commit(),
    }


def one_line(about: Mapping[str, Any]) -> str:
    """For a plot."""
    return (
        f"{about['model']} on {about['cpu']} ({about['cores']} cores), "
        f"millrace {about['version']} {about['commit']}, {about['date']}"
    )


def _commit() -> str:
    """With a + if files were changed since; a word instead where there is no repository."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown commit"
    return done.stdout.strip() or "unknown commit"


def _memory() -> str:
    kilobytes = _field(MEMORY_INFO, ("MemTotal",)).split()
    return format_bytes(int(kilobytes[0]) * 1024) if kilobytes else "unknown"


def _field(path: Path, keys: tuple[str, ...]) -> str:
    """The value of the first key that is there, of a file of `key: value` lines."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = [line.partition(":") for line in lines]
    found = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    return next((found[key] for key in keys if found.get(key)), "")
