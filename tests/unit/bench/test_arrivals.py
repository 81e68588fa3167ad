"""Static batches: the same arrivals, held back until a batch is whole."""

from __future__ import annotations

import asyncio
import time
from statistics import mean

import pytest
from scripts.bench.arrivals import at_once, poisson_asks, static_batches
from scripts.bench.batching import static_latencies_s

from millrace.cli.load.ask import Ask
from millrace.cli.load.outcome import Outcome

BATCH_S = 0.2


def test_batch_is_ready_when_its_last_request_arrives() -> None:
    asks = [Ask(str(number), 1, at_s) for number, at_s in enumerate([3.0, 0.5, 1.0, 2.0, 4.0])]
    batches = static_batches(asks, 2)
    times_s = [[ask.at_s for ask in batch.asks] for batch in batches]
    assert times_s == [[0.5, 1.0], [2.0, 3.0], [4.0]]
    assert [batch.ready_at_s for batch in batches] == [1.0, 3.0, 4.0]


def test_batch_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        static_batches([], 0)


def test_same_seed_gives_both_sides_the_same_requests_at_the_asked_rate() -> None:
    asks = poisson_asks(400, 5.0, seed=3)
    assert asks == poisson_asks(400, 5.0, seed=3) != poisson_asks(400, 5.0, seed=4)
    gaps = [after.at_s - before.at_s for before, after in zip(asks, asks[1:], strict=False)]
    assert mean(gaps) == pytest.approx(1 / 5.0, rel=0.2)
    assert len({ask.num_output_tokens for ask in asks}) > 50
    assert {ask.at_s for ask in at_once(asks)} == {0.0}


class Recorder:
    """Answers every request after `BATCH_S` and notes when it began."""

    protocol = "fake"

    def __init__(self) -> None:
        self.began_s: dict[str, float] = {}

    async def send(self, ask: Ask, outcome: Outcome) -> None:
        self.began_s[ask.prompt] = time.monotonic()
        await asyncio.sleep(BATCH_S)

    async def close(self) -> None:
        pass


async def test_requests_wait_for_their_batch_and_batches_for_each_other() -> None:
    recorder = Recorder()
    # Eight that arrive over 0.1 s, and one right behind them that is a batch of its own.
    times_s = [0.0, *[0.1] * 7, 0.11]
    asks = [Ask(str(number), 1, at_s) for number, at_s in enumerate(times_s)]
    latencies_s = await static_latencies_s(recorder, asks)
    began_s = [recorder.began_s[str(number)] for number in range(9)]
    assert max(began_s[:8]) < min(began_s[:8]) + BATCH_S
    assert began_s[8] >= max(began_s[:8]) + BATCH_S
    # The first waited 0.1 s for the others; the last for the whole first batch.
    assert latencies_s[0] >= 0.1 + BATCH_S
    assert latencies_s[0] > latencies_s[1] + 0.05
    assert latencies_s[8] >= 2 * BATCH_S - 0.011
