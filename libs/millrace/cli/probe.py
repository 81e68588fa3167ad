"""`millrace probe`: is this address healthy? Made for the health checks of containers."""

from __future__ import annotations

import argparse
import socket
import urllib.parse
from typing import Any

from millrace.core.errors import InvalidRequest, Unavailable

from .console import Console
from .http_probe import get_json


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("probe", help="check the health of one address")
    parser.add_argument("url", help="grpc://host:port, http://host:port/path or tcp://host:port")
    parser.add_argument("--timeout-s", type=float, default=3.0, help="longest wait; default: 3")


def run(args: argparse.Namespace) -> int:
    """Says `healthy` and ends with 0, or fails with the reason."""
    checks = {"grpc": _check_grpc, "http": _check_http, "tcp": _check_tcp}
    try:
        parts = urllib.parse.urlsplit(args.url)
        is_known = parts.scheme in checks and bool(parts.port)
    except ValueError:
        # A port that is no number, brackets that do not close.
        is_known = False
    if not is_known:
        raise InvalidRequest(f"{args.url} is none of grpc://, http://, tcp:// with a port")
    checks[parts.scheme](args.url, args.timeout_s)
    Console().line("healthy")
    return 0


def _check_http(url: str, timeout_s: float) -> None:
    status, _ = get_json(url, timeout_s=timeout_s)
    if status != 200:
        raise Unavailable(f"{url} answers {status}" if status else f"{url} does not answer")


def _check_tcp(url: str, timeout_s: float) -> None:
    parts = urllib.parse.urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout_s).close()
    except OSError as exc:
        raise Unavailable(f"{url} does not accept: {exc}") from exc


def _check_grpc(url: str, timeout_s: float) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from millrace.rpc.client import proxy_options

    address = urllib.parse.urlsplit(url).netloc
    options = proxy_options(address, may_use_proxy=True)
    with grpc.insecure_channel(address, options=options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as exc:
            raise Unavailable(f"{url} does not answer: {exc.details()}") from exc
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise Unavailable(f"{url} is not serving")
