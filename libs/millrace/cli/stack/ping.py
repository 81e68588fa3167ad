"""Asking a process whether it still answers, in the protocol that it speaks.

A process that is stopped or hangs keeps its port open: the kernel still takes connections for it.
"""

from __future__ import annotations

import asyncio

from .wiring import Instance

_MAX_REPLY_BYTES = 4096
# What to say first; nats-server greets by itself.
_QUESTIONS = {
    "http": b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "nats": b"",
    "redis": b"PING\r\n",
}


def can_ask(instance: Instance) -> bool:
    """False for a process without a ping, or whose port for it is switched off."""
    return bool(instance.spec.ping and _ping_port(instance))


async def answers(instance: Instance, timeout_s: float) -> bool:
    """True if the process says anything at all in time."""
    spec = instance.spec
    port = _ping_port(instance)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(instance.host, port)
            try:
                writer.write(_QUESTIONS[spec.ping])
                return bool(await reader.read(_MAX_REPLY_BYTES))
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _ping_port(instance: Instance) -> int:
    """0 if nothing listens there by choice."""
    return instance.ports.get(instance.spec.ping_port or next(iter(instance.ports)), 0)
