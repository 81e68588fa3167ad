"""What tracing costs: two stacks, one with telemetry and one without, taking turns at 32 streams.

Two figures. Tokens/s is what counts, but on a busy machine it varies by more than the cost. CPU
time per token hardly varies with what else runs: `cpu_cost_percent` is the CPU time that telemetry
adds to all processes but the workers, against that of the whole stack without telemetry. Workers
are shown but left out of it, for their kernels' time varies with what else runs.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from millrace.cli.load.ask import Ask
from millrace.cli.load.grpc_target import GrpcTarget
from millrace.cli.load.prompts import Prompts
from millrace.config.home import millrace_home
from millrace.testing.stack import Stack, start_stack

from .processes import cpu_s, stack_pids
from .stack import closed_load

NUM_STREAMS = 32
NUM_TOKENS = 96
# Short prompts: a run is nearly all decoding, where every token passes every service.
PROMPT_TOKENS = 30
# Spans leave a process once a second: the last of a run belong to it.
EXPORT_S = 1.5


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one side; CPU milliseconds per token by process."""

    tokens_per_s: float
    cpu_ms: dict[str, float]

    @property
    def worker_cpu_ms(self) -> float:
        """Of the workers."""
        return sum(ms for name, ms in self.cpu_ms.items() if name.startswith("worker"))

    @property
    def other_cpu_ms(self) -> float:
        """Of everything but the workers."""
        return sum(self.cpu_ms.values()) - self.worker_cpu_ms


class Side:
    """A stack with or without telemetry."""

    def __init__(self, stack: Stack) -> None:
        self._pids = stack_pids(stack)
        self.target = GrpcTarget(stack.grpc_address)

    async def run(self, texts: list[str]) -> Run:
        """All streams once."""
        before = self._cpu_s()
        asks = [Ask(text, NUM_TOKENS) for text in texts]
        load = await closed_load(self.target, asks, NUM_STREAMS)
        await asyncio.sleep(EXPORT_S)
        after = self._cpu_s()
        num_tokens = load.num_output_tokens
        cpu_ms = {name: 1000 * (after[name] - before[name]) / num_tokens for name in after}
        return Run(num_tokens / load.elapsed_s, cpu_ms)

    def _cpu_s(self) -> dict[str, float]:
        return {name: cpu_s(pid) or 0.0 for name, pid in self._pids.items()}


def telemetry_cost(num_pairs: int, dtype: str) -> dict[str, Any]:
    """Medians over interleaved pairs; costs are percent, negative where noise is larger."""
    with ExitStack() as stacks:
        sides = []
        for flag in ("true", "false"):
            home = stacks.enter_context(tempfile.TemporaryDirectory(prefix="millrace-bench-"))
            flags = ["--dtype", dtype, "--telemetry", flag]
            stack = stacks.enter_context(start_stack(Path(home), millrace_home().models, *flags))
            sides.append(stack)
        pairs = asyncio.run(_pairs(num_pairs, *sides))
    costs = [100 * (1 - traced.tokens_per_s / plain.tokens_per_s) for traced, plain in pairs]
    cpu_costs = [
        100
        * (traced.other_cpu_ms - plain.other_cpu_ms)
        / (plain.other_cpu_ms + plain.worker_cpu_ms)
        for traced, plain in pairs
    ]
    return {
        "cost_percent": round(median(costs), 2),
        "cost_percent_pairs": [round(cost, 2) for cost in costs],
        "cpu_cost_percent": round(median(cpu_costs), 2),
        "cpu_cost_percent_pairs": [round(cost, 2) for cost in cpu_costs],
        "with": _medians([traced for traced, _ in pairs]),
        "without": _medians([plain for _, plain in pairs]),
    }


def _medians(runs: list[Run]) -> dict[str, Any]:
    return {
        "tokens_per_s": round(median(run.tokens_per_s for run in runs), 2),
        "cpu_ms_per_token": {
            name: round(median(run.cpu_ms[name] for run in runs), 3) for name in runs[0].cpu_ms
        },
    }


async def _pairs(num_pairs: int, traced: Stack, plain: Stack) -> list[tuple[Run, Run]]:
    sides = [Side(traced), Side(plain)]
    prompts = Prompts(time.time_ns())
    pairs = []
    # The first pair only warms both up.
    for index in range(num_pairs + 1):
        texts = prompts.draw_spread(NUM_STREAMS, PROMPT_TOKENS, PROMPT_TOKENS)
        # The side that goes first changes, so that neither has the quieter half of the minute.
        order = sides if index % 2 else sides[::-1]
        runs = {side: await side.run(texts) for side in order}
        if index > 0:
            pairs.append((runs[sides[0]], runs[sides[1]]))
    for side in sides:
        await side.target.close()
    return pairs
