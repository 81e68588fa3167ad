"""What a run sends and how: the requests with their times, and the loop that sends them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from millrace.core.errors import Unavailable

from .arrivals import arrival_times
from .ask import Ask
from .lengths import Lengths
from .outcome import Load
from .prompts import Prompts
from .runner import Limits, LoadRun, Target
from .trace_file import read_trace

# Warm-up prompts have a seed of their own: none of them is a prefix of what is measured.
WARM_UP_SEED_STEP = 1 << 32
WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Workload:
    """`asks` gives the requests anew at each call; 0 streams is an open loop."""

    about: str
    seed: int
    asks: Callable[[], Iterable[Ask]]
    num_streams: int = 0

    async def run(self, load_run: LoadRun) -> Load:
        """Sends everything."""
        if self.num_streams:
            return await load_run.closed_loop(list(self.asks()), self.num_streams)
        return await load_run.open_loop(self.asks())

    async def warm_up(self, target: Target, count: int, timeout_s: float) -> None:
        """`count` requests one after another. Raises Unavailable where one fails."""
        if count <= 0:
            return
        prompts = Prompts(self.seed + WARM_UP_SEED_STEP)
        asks = [Ask(prompts.draw(WARM_UP_TOKENS), WARM_UP_TOKENS) for _ in range(count)]
        load = await LoadRun(target, Limits(timeout_s, timeout_s)).closed_loop(asks, 1)
        errors = load.errors()
        if errors:
            raise Unavailable(f"a request to warm up failed: {next(iter(errors))}")


def closed_workload(count: int, lengths: Lengths, num_streams: int, *, seed: int) -> Workload:
    """So many streams, each with its next request when it has its answer."""
    about = f"closed loop, {num_streams} streams, {count} requests of {lengths}"
    return Workload(about, seed, lambda: _asks([0.0] * count, lengths, seed), num_streams)


def open_workload(
    count: int,
    lengths: Lengths,
    rate: float,
    *,
    burstiness: float,
    burst: int,
    seed: int,
) -> Workload:
    """Raises ConfigError for rates and shapes that are not positive."""
    times_s = arrival_times(count, rate, burstiness=burstiness, burst=burst, seed=seed)
    shape = f"burstiness {burstiness:g}" if burst == 1 else f"bursts of {burst}"
    about = f"open loop, {rate:g} requests/s, {shape}, {count} requests of {lengths}"
    return Workload(about, seed, lambda: _asks(times_s, lengths, seed))


def trace_workload(path: Path, *, limit: int | None, speed: float, seed: int) -> Workload:
    """Raises ConfigError for a file that is no trace, and OSError."""
    requests = read_trace(path, limit)
    about = f"trace {path.name} at speed {speed:g}, {len(requests)} requests"
    # Prompts are made as they are sent: all at once a long trace would not fit into memory.
    return Workload(
        about, seed, lambda: (request.to_ask(speed=speed, seed=seed) for request in requests)
    )


def _asks(times_s: Sequence[float], lengths: Lengths, seed: int) -> list[Ask]:
    texts = Prompts(seed).draw_spread(len(times_s), lengths.min_input, lengths.max_input)
    return [Ask(text, lengths.output, at_s) for text, at_s in zip(texts, times_s, strict=True)]
