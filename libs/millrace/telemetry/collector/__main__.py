"""Starts the span collector."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys

from millrace.config.loader import load_config
from millrace.core.errors import ConfigError, MillraceError, Unavailable
from millrace.core.loopback import is_loopback
from millrace.telemetry.http_server import HttpServer
from millrace.telemetry.log_line import log_line
from millrace.telemetry.logs import configure_logging
from millrace.telemetry.trace_writer import TraceWriter

from .config import CollectorConfig
from .forwarder import Forwarder
from .receiver import Receiver


async def serve(config: CollectorConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError or Unavailable where it cannot start."""
    if not is_loopback(config.host):
        raise ConfigError(f"host is {config.host!r}; it must be a loopback address", field="host")
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        forwarder = Forwarder(config.forward_url)
    except ValueError as error:
        raise ConfigError(f"forward_url: {error}", field="forward_url") from None
    try:
        writer = TraceWriter(
            config.store, max_requests=config.max_requests, max_steps=config.max_steps
        )
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"the span store {config.store} cannot be made: {error}") from error
    receiver = Receiver(writer, forwarder, max_body_bytes=config.max_body_bytes)
    server = HttpServer(receiver.answer, max_body_bytes=config.max_body_bytes)
    try:
        await server.start(config.host, config.port)
    except OSError as error:
        writer.close()
        raise Unavailable(f"cannot listen on {config.host}:{config.port}: {error}") from error
    ready = f"ready collector {config.host}:{server.port}"
    print(log_line("collector", ready), flush=True)
    await stopped.wait()
    await server.close()
    await receiver.close()
    await forwarder.close()


def main() -> None:
    """Entry point of `python -m millrace.telemetry.collector`."""
    try:
        config = load_config(CollectorConfig, "collector", prog="millrace-collector")
        configure_logging("collector")
        asyncio.run(serve(config))
    except MillraceError as error:
        print(f"collector: {error.message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
