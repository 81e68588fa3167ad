"""Faults F18, F19, F21: neighbours that the gateway can do without, or must refuse without."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from millrace.cache.store import SOCKET_TIMEOUT_S
from millrace.scheduler.config import SchedulerConfig
from millrace.testing.servers import LocalServer, start_valkey
from millrace.wire.tokenizer_client import DECODE_TRY_S, TRY_S
from tests.faults.edge_stack import EdgeStack, edge_stack, until
from tests.faults.local_service import start_service
from tests.faults.slow_proxy import SlowProxy, slow_proxy
from tests.faults.tiny_model import write_tiny_model
from tests.integration.gateway import MODEL

SLOW_S = 0.5
NUM_ASKED = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / MODEL)


# Two per test: gRPC holds on to its connection with a server that lives.
@pytest.fixture
def tokenizers(model: Path, tmp_path: Path) -> Iterator[tuple[LocalServer, LocalServer]]:
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(start_service("tokenizer", tmp_path, models=model))
            for _ in range(2)
        )
        yield first, second


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[LocalServer]:
    with start_valkey(tmp_path) as server:
        yield server


@pytest.fixture
async def proxy(valkey: LocalServer) -> AsyncIterator[SlowProxy]:
    async with slow_proxy(valkey.port) as made:
        yield made


@pytest.fixture
async def edge(
    config: SchedulerConfig,
    proxy: SlowProxy,
    tokenizers: tuple[LocalServer, LocalServer],
    tmp_path: Path,
    no_task_fails_unheard: None,
) -> AsyncIterator[EdgeStack]:
    """With a cache service whose way to Valkey leads through the proxy, and two tokenizers."""
    redis_url = f"redis://127.0.0.1:{proxy.port}/0"
    stack = ExitStack()
    cache = await asyncio.to_thread(
        stack.enter_context, start_service("cache", tmp_path, redis_url=redis_url)
    )
    addresses = tuple(server.url for server in tokenizers)
    settings = {"tokenizer_addresses": addresses, "cache_address": cache.url, "hold_s": 0.5}
    try:
        async with edge_stack(config, **settings) as made:
            await made.until_ready()
            yield made
    finally:
        await asyncio.to_thread(stack.close)


async def _is_cached(edge: EdgeStack, prompt: str) -> bool:
    """Asks for an answer by way of the cache; it must be given either way."""
    reply = await edge.post(prompt, cache="use")
    assert reply.status_code == 200, reply.text
    return bool(reply.json()["millrace"]["cached"])


async def _until_cached(edge: EdgeStack, prompt: str) -> None:
    await until(lambda: _is_cached(edge, prompt))


async def _ttfts(edge: EdgeStack, name: str) -> list[float]:
    """Of streams that use the cache, one after the other, each with a prompt of its own."""
    return sorted(
        [(await edge.stream(f"{name} {i}", cache="use")).ttft_s for i in range(NUM_ASKED)]
    )


async def test_f18_killed_valkey_costs_only_the_cache_and_comes_back_empty(
    edge: EdgeStack, valkey: LocalServer
) -> None:
    await _until_cached(edge, "Once")
    valkey.kill()
    for _ in range(20):
        assert not await _is_cached(edge, "Once")
    await edge.until_ready("cache")
    keyed = await edge.post("Keyed", idempotency_key="a key")
    assert keyed.status_code == 503, "whether that key has run cannot be known"
    assert keyed.json()["error"]["param"] == "idempotency_key"

    await asyncio.to_thread(valkey.start)
    await edge.until_ready()
    assert not await _is_cached(edge, "Once"), "it came back empty"
    await _until_cached(edge, "Once")


async def test_f19_slow_valkey_adds_no_more_than_one_timeout_to_the_first_token(
    edge: EdgeStack, proxy: SlowProxy
) -> None:
    await _ttfts(edge, "warm")
    usual = await _ttfts(edge, "usual")
    proxy.delay_s = SLOW_S
    slow = await _ttfts(edge, "slow")
    assert slow[-1] < usual[-1] + SOCKET_TIMEOUT_S < SLOW_S + usual[-1]
    assert slow[NUM_ASKED // 2] < usual[NUM_ASKED // 2] + 0.05
    client = edge.gateway._pipeline._cache
    assert client is not None
    assert client.num_skipped > NUM_ASKED, "look-ups and stores alike are left out"  # type: ignore[attr-defined]
    began_s = time.monotonic()
    await edge.until_ready("cache")
    assert time.monotonic() - began_s < 2.0
    proxy.delay_s = 0.0
    await edge.until_ready()
    await _until_cached(edge, "Once")


async def test_f19_full_valkey_keeps_nothing_and_answers_all_the_same(
    edge: EdgeStack, valkey: LocalServer
) -> None:
    await _until_cached(edge, "Once")
    await _configure(valkey, "maxmemory", "1")
    usual = await _ttfts(edge, "full")
    assert usual[-1] < SLOW_S
    assert not await _is_cached(edge, "Twice")
    assert not await _is_cached(edge, "Twice"), "it cannot be kept"
    # What was kept is there still; one look-up may take longer than it is given.
    await _until_cached(edge, "Once")
    await edge.until_ready()
    await _configure(valkey, "maxmemory", "0")
    await _until_cached(edge, "Twice")


async def _configure(valkey: LocalServer, name: str, value: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", valkey.port)
    writer.write(f"CONFIG SET {name} {value}\r\n".encode())
    assert await reader.readline() == b"+OK\r\n"
    writer.close()
    await writer.wait_closed()


async def test_f21_killed_tokenizer_is_replaced_by_its_replica_and_without_any_nothing_runs(
    edge: EdgeStack, tokenizers: tuple[LocalServer, LocalServer]
) -> None:
    first, second = tokenizers
    before = [(await edge.post(f"Text {i}")).json()["choices"] for i in range(6)]
    first.kill()
    after = [(await edge.post(f"Text {i}")).json()["choices"] for i in range(6)]
    assert after == before
    assert await edge.ready() == (200, [])

    second.kill()
    num_tokens = edge.sample("millrace_prompt_tokens_total", model_name=MODEL)
    began_s = time.monotonic()
    refused = await edge.post("Nobody encodes", idempotency_key="kept free")
    assert time.monotonic() - began_s < 3.0
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "unavailable"
    assert int(refused.headers["retry-after"]) >= 1
    await edge.until_ready(status=503)
    # Nothing was charged: no token counted, nothing queued, the key still free.
    assert edge.sample("millrace_prompt_tokens_total", model_name=MODEL) == num_tokens
    await edge.stack.check_empty()

    await _start_again(tokenizers)
    await edge.until_ready()
    again = await edge.post("Nobody encodes", idempotency_key="kept free")
    assert again.status_code == 200
    assert not again.json()["millrace"]["cached"], "the refused one left no answer behind"


async def test_f21_tokenizer_that_dies_under_a_stream_loses_no_text(
    edge: EdgeStack, tokenizers: tuple[LocalServer, LocalServer]
) -> None:
    whole = await edge.stream("Tell on", max_tokens=60)
    node = edge.stack.workers["w"]
    node.engine.gate.clear()
    cut = asyncio.create_task(edge.stream("Tell on", max_tokens=60))
    await edge.stack.until(lambda: len(edge.stack.service.ledger) == 1)
    for server in tokenizers:
        server.kill()
    node.engine.gate.set()
    await _start_again(tokenizers)
    assert (await cut).text == whole.text


async def test_f21_frozen_tokenizer_costs_one_request_two_seconds(
    edge: EdgeStack, tokenizers: tuple[LocalServer, LocalServer]
) -> None:
    frozen, _ = tokenizers
    assert frozen.process is not None
    await edge.stream("Warm")
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        took_s = sorted([(await edge.stream(f"Text {i}")).ttft_s for i in range(8)])
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    # One of them asked it to encode, one had a frame there.
    assert took_s[-1] < TRY_S + DECODE_TRY_S + 1.0
    assert took_s[-3] < 0.5


async def test_gateway_is_not_ready_while_the_only_engine_cannot_generate(edge: EdgeStack) -> None:
    engine = edge.stack.workers["w"].engine
    engine.num_failing_steps = 1_000_000
    # Nobody asks anything: the canary tells.
    await edge.until_ready(status=503)
    refused = await edge.post("Once")
    assert refused.status_code == 503
    engine.num_failing_steps = 0
    await edge.until_ready()
    assert (await edge.post("Once")).status_code == 200


async def _start_again(servers: tuple[LocalServer, ...]) -> None:
    for server in servers:
        await asyncio.to_thread(server.start)
