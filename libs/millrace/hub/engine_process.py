"""A question to the engine in a process of its own: it takes torch and transformers to answer."""

from __future__ import annotations

import os
import subprocess
import sys

from millrace.core.errors import ConfigError


def run_engine(module: str, *arguments: str, timeout_s: float) -> bytes:
    """What `python -m module` prints, offline. Raises `ConfigError` with its last words."""
    try:
        result = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"it took over {timeout_s:g} s; is the machine overloaded?") from error
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigError(said[-1] if said else f"the process ended with {result.returncode}")
    return result.stdout
