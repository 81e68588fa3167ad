"""Other `millrace` commands that `up` runs in processes of their own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

from millrace.core.errors import Unavailable
from millrace.core.own_command import own_command

from .parent_death import death_with_parent


async def run_millrace(command: tuple[str, ...], environ: Mapping[str, str]) -> None:
    """Runs a `millrace` command quietly. Raises `Unavailable` with what it said on failure."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "millrace.cli",
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environ,
            start_new_session=True,
            preexec_fn=death_with_parent(),
        )
    except OSError as exc:
        raise Unavailable(f"{own_command(' '.join(command))} cannot be started: {exc}") from exc
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = output.decode(errors="replace").strip().removeprefix("millrace: ")
        raise Unavailable(f"{own_command(' '.join(command))}: {said}")
