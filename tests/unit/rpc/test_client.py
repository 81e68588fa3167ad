"""Channels of ours and the proxies of the environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from millrace.cli.probe import _check_grpc
from millrace.cli.proxies import hides_loopback, named_proxies
from millrace.rpc.client import open_channel, proxy_options
from millrace.rpc.server import RpcServer

VARIABLES = ("grpc_proxy", "http_proxy", "https_proxy", "no_proxy", "no_grpc_proxy")
PAST_THE_PROXY = [("grpc.enable_http_proxy", 0)]


class Proxy:
    """Counts who asks it, and answers nobody."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readline())
        writer.close()


@pytest.fixture
async def proxy(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Proxy]:
    made = Proxy()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://bob:hunter2@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(request.param, made.url)
    async with server:
        yield made


@pytest.fixture(params=["127.0.0.1", "::1", "localhost"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    made = RpcServer("test", request.param, 0)
    yield await made.start()
    await made.stop(0)


@pytest.mark.parametrize("proxy", ["http_proxy", "https_proxy", "grpc_proxy"], indirect=True)
@pytest.mark.parametrize("may_use_proxy", [True, False])
async def test_nothing_between_us_and_our_own_machine(
    proxy: Proxy, server: str, may_use_proxy: bool
) -> None:
    channel = open_channel(server, may_use_proxy=may_use_proxy)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    await channel.close()
    await asyncio.to_thread(_check_grpc, f"grpc://{server}", 10.0)

    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert proxy.requests == []


@pytest.mark.parametrize("proxy", ["http_proxy"], indirect=True)
async def test_only_a_client_may_take_a_proxy_to_another_machine(proxy: Proxy) -> None:
    # A name that nobody has to resolve: the proxy is asked for it.
    for may_use_proxy in (False, True):
        channel = open_channel("gateway.invalid:50051", may_use_proxy=may_use_proxy)
        channel.get_state(try_to_connect=True)
        async with asyncio.timeout(10):
            while may_use_proxy and not proxy.requests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await channel.close()
        assert bool(proxy.requests) is may_use_proxy
    assert proxy.requests[0] == b"CONNECT gateway.invalid:50051 HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:1", "dns:///localhost:1"),
        *("unix:/run/x.sock", "unix:///run/x.sock", "unix-abstract:x"),
    ],
)
def test_this_machine_is_known_by_every_spelling(address: str) -> None:
    assert proxy_options(address, may_use_proxy=True) == PAST_THE_PROXY


@pytest.mark.parametrize("address", ["gateway:50051", "10.0.0.7:50051", "[fd00::7]:50051", "x"])
def test_others_are_the_clients_to_reach(address: str) -> None:
    assert proxy_options(address, may_use_proxy=True) == []
    assert proxy_options(address, may_use_proxy=False) == PAST_THE_PROXY


@pytest.mark.parametrize(
    ("environ", "is_hidden"),
    [
        ({}, False),
        ({"http_proxy": "http://p:1"}, True),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "localhost"}, True),
        ({"http_proxy": "http://p:1", "no_proxy": "localhost, 127.0.0.1"}, False),
        ({"ALL_PROXY": "http://p:1", "no_proxy": "*"}, False),
        ({"no_proxy": "localhost"}, False),
    ],
)
def test_a_proxy_in_front_of_this_machine_is_noticed(
    environ: dict[str, str], is_hidden: bool
) -> None:
    assert hides_loopback(environ) is is_hidden


def test_proxies_are_named_without_passwords() -> None:
    environ = {"http_proxy": "http://bob:hunter2@p:1", "grpc_proxy": ""}

    assert named_proxies(environ) == {"http_proxy": "http://***@p:1"}
