"""What the scheduler does around a step: whom it tells first, and what its metrics say.

Requests' steps are counted, canaries' are not.
"""

from __future__ import annotations

import pytest
from prometheus_client import Histogram

from millrace.core.tokens import TokenFrame
from millrace.internal.v1 import scheduler_pb2
from millrace.scheduler import servicer
from millrace.scheduler.gateway_links import LinkEvent
from millrace.scheduler.outcome import StepOutcome
from tests.integration.gateway import queued_request
from tests.integration.stack import Stack


def _count(histogram: Histogram) -> float:
    (metric,) = histogram.collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_count"))


async def test_round_trips_are_those_of_plans_and_batches_those_of_requests(stack: Stack) -> None:
    await stack.add_worker()
    await stack.until(lambda: stack.service.scheduler.stats().num_workers == 1)
    metrics = stack.service._loop._metrics
    assert (_count(metrics.round_trip), _count(metrics.batch_size)) == (0, 0), "a canary only"
    gateway = await stack.gateway()
    await gateway.send(stack.bus, queued_request(max_tokens=40))
    await gateway.until_over()
    num_steps = _count(metrics.batch_size)
    assert num_steps == 40
    # Steps on the lease had no plan of their own.
    assert 1 <= _count(metrics.round_trip) <= num_steps


async def test_tokens_leave_for_the_gateway_before_the_next_plan_is_made(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stack.add_worker()
    order: list[str] = []
    loop, convert = stack.service._loop, servicer._to_response
    send_outcome, dispatch = loop._frames.send_outcome, loop.dispatch

    def apply(outcome: StepOutcome, worker_id: str = "") -> None:
        order.extend(["tokens"] * bool(outcome.deltas))
        send_outcome(outcome, worker_id)

    def to_response(event: LinkEvent) -> scheduler_pb2.AttachResponse:
        order.extend(["frame"] * (isinstance(event, TokenFrame) and bool(event.deltas)))
        return convert(event)

    def make_plans() -> None:
        order.append("plans")
        dispatch()

    gateway = await stack.gateway()
    await stack.until(lambda: stack.service.scheduler.stats().num_workers == 1)
    monkeypatch.setattr(loop._frames, "send_outcome", apply)
    monkeypatch.setattr(servicer, "_to_response", to_response)
    # What the loop itself calls; others who have work for it hold the method.
    monkeypatch.setattr(loop, "dispatch", make_plans)
    await gateway.send(stack.bus, queued_request(max_tokens=12))
    await gateway.until_over()
    text = " ".join(order)
    assert text.count("tokens") == 12
    assert text.count("tokens frame plans") == 12, text
