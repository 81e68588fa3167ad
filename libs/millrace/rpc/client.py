"""How every service opens a channel: message limits, keepalive, trace context."""

from __future__ import annotations

import grpc

from millrace.core.address import split_host_port
from millrace.core.loopback import is_loopback

from .traced_channel import TracedChannel

MAX_MESSAGE_BYTES = 16 << 20
KEEPALIVE_TIME_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000


def message_limits(max_message_bytes: int) -> list[tuple[str, int]]:
    """Both directions: gRPC's own default of 4 MiB on receive is too small for long prompts."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
    ]


def proxy_options(address: str, *, may_use_proxy: bool) -> list[tuple[str, int]]:
    """Keeps gRPC from the proxy that http_proxy, https_proxy or grpc_proxy names.

    Between our own services there is never one: a proxy knows neither loopback nor the names inside
    a cluster, and would hold every stream. Only a client may go through one, and not to its own
    machine; gRPC itself then looks at no_proxy.
    """
    if may_use_proxy and not _is_here(address):
        return []
    return [("grpc.enable_http_proxy", 0)]


def _is_here(address: str) -> bool:
    """True for an address of this machine alone: loopback, or a socket in the file system."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    try:
        host, _ = split_host_port(address.removeprefix("dns:").lstrip("/"))
    except ValueError:
        return False
    return is_loopback(host)


def open_channel(
    address: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES, may_use_proxy: bool = False
) -> grpc.aio.Channel:
    """A channel to `host:port`; connects on first use and again by itself after a loss."""
    options: list[tuple[str, int]] = [
        *message_limits(max_message_bytes),
        *proxy_options(address, may_use_proxy=may_use_proxy),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Peers restart on the same port: an old subchannel must not be shared between channels.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return TracedChannel(grpc.aio.insecure_channel(address, options=options))
