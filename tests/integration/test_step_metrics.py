"""What the scheduler's metrics say of steps: requests' are counted, canaries' are not."""

from __future__ import annotations

from prometheus_client import Histogram

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
