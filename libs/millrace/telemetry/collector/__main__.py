"""Starts the span collector."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys

from millrace.config.environment import current_environment
from millrace.config.home import millrace_home
from millrace.config.loader import load_config
from millrace.core.address import join_host_port
from millrace.core.errors import ConfigError, MillraceError, Unavailable
from millrace.core.loopback import is_loopback
from millrace.core.url import HttpUrl
from millrace.telemetry.http_server import HttpServer
from millrace.telemetry.log_line import log_line
from millrace.telemetry.logs import configure_logging
from millrace.telemetry.otlp_settings import read_export_settings
from millrace.telemetry.store import STORE_FILE
from millrace.telemetry.trace_writer import TraceWriter
from millrace.telemetry.tracing_ui import ui_folder

from .config import CollectorConfig
from .destination import OTLP_TIMEOUT_S, OtlpDestination, UiDestination
from .forwarder import Forwarder
from .receiver import Receiver

# What has been taken may still reach the backend.
OTLP_GRACE_S = 1.0


async def serve(config: CollectorConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError or Unavailable where it cannot start."""
    if not is_loopback(config.host) and not config.insecure_bind:
        raise ConfigError(
            f"host is {config.host!r}; it must be a loopback address, or insecure_bind be set",
            field="host",
        )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    ui = Forwarder(_tracing_ui(config))
    otlp = _otlp_backend() if config.forward_otlp else None
    store = config.store or millrace_home().run / STORE_FILE
    try:
        writer = TraceWriter(store, max_requests=config.max_requests, max_steps=config.max_steps)
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"the span store {store} cannot be made: {error}") from error
    receiver = Receiver(writer, ui, otlp, max_body_bytes=config.max_body_bytes)
    server = HttpServer(receiver.answer, max_body_bytes=config.max_body_bytes)
    try:
        await server.start(config.host, config.port)
    except OSError as error:
        writer.close()
        address = join_host_port(config.host, config.port)
        raise Unavailable(f"cannot listen on {address}: {error.strerror}") from error
    ready = f"ready collector {join_host_port(config.host, server.port)}"
    print(log_line("collector", ready), flush=True)
    await stopped.wait()
    await server.close()
    await receiver.close()
    await ui.close()
    if otlp is not None:
        await otlp.close(OTLP_GRACE_S)


def _tracing_ui(config: CollectorConfig) -> UiDestination:
    """The one that is named, else the one of the same home while it runs."""
    named, folder = config.forward_url, ui_folder(millrace_home())
    if named is not None and named.scheme != "http":
        raise ConfigError("forward_url must begin with http://", field="forward_url")

    def find() -> HttpUrl | None:
        if named is not None:
            return named
        running = folder.running()
        return HttpUrl(f"http://127.0.0.1:{running.port}") if running else None

    return UiDestination(find)


def _otlp_backend() -> Forwarder:
    settings = read_export_settings(current_environment())
    if settings is None:
        raise ConfigError("forward_otlp needs OTEL_EXPORTER_OTLP_ENDPOINT", field="forward_otlp")
    timeout_s = settings.timeout_s or OTLP_TIMEOUT_S
    return Forwarder(OtlpDestination(settings), timeout_s=timeout_s + OTLP_GRACE_S)


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
