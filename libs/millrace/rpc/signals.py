"""Waiting for the end."""

from __future__ import annotations

import asyncio
import signal


async def run_until_signalled() -> None:
    """Returns on the first SIGTERM or SIGINT; must run in the main thread."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
