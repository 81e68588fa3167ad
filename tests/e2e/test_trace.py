"""One request is one trace: every hop has its parent, and the spans explain the time."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from millrace.core.errors import RequestNotFound
from millrace.telemetry.names import SERVICE_EDGES
from millrace.telemetry.span_record import SpanRecord
from millrace.telemetry.store import TraceStore
from millrace.testing.span_recorder import assert_edges, leaf_coverage
from millrace.testing.stack import Stack
from millrace.v1 import types_pb2
from tests.e2e.client import Answer, Client

WAIT_S = 20.0
# Spans leave each process once a second.
SETTLE_S = 1.5

pytestmark = pytest.mark.e2e


async def test_trace_has_every_edge_and_its_leaves_cover_the_root(stack: Stack) -> None:
    client = Client(stack)
    answer = await client.ask(text="Tell me about mills.", max_tokens=32, ignore_eos=True)
    await client.close()
    spans = await _spans_of(stack, answer.request_id)
    assert_edges(spans, SERVICE_EDGES)
    assert leaf_coverage(spans) >= 0.95


async def test_cached_answer_shows_all_five_services_and_is_marked(stack: Stack) -> None:
    client = Client(stack)
    text = f"A wheel at {time.time_ns()} turns"
    first = await client.ask(text=text, max_tokens=8, cache=types_pb2.CACHE_MODE_USE)
    second = await _ask_until_cached(client, text)
    spans = await _spans_of(stack, first.request_id)
    await client.close()
    assert first.finished is not None and not first.finished.cached
    assert (second.text, second.tokens) == (first.text, first.tokens)
    services = {span.service for span in spans}
    assert services >= {"gateway", "tokenizer", "scheduler", "worker", "cache"}


async def _ask_until_cached(client: Client, text: str) -> Answer:
    """The cache is filled after the first client's end, and passed over while it is slow."""
    deadline = time.monotonic() + WAIT_S
    while True:
        answer = await client.ask(text=text, max_tokens=8, cache=types_pb2.CACHE_MODE_USE)
        if answer.finished is not None and answer.finished.cached:
            return answer
        assert time.monotonic() < deadline, "no answer came from the cache"


async def _spans_of(stack: Stack, request_id: str) -> list[SpanRecord]:
    """The spans of a request and the steps it was in, once no more come."""
    store = TraceStore(stack.home / "run" / "spans.db")
    spans: list[SpanRecord] = []
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        await asyncio.sleep(SETTLE_S)
        with contextlib.suppress(RequestNotFound):
            trace = store.load(store.find(request_id))
            found = [*trace.spans, *trace.steps]
            if len(found) == len(spans):
                store.close()
                return found
            spans = found
    pytest.fail(f"no complete trace of {request_id} in {WAIT_S} s; {len(spans)} spans")
