"""What tracing costs: tokens/s at 32 streams of two stacks, one with telemetry and one without."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from bench_load import GrpcTarget, Prompts, run_load

from millrace.config.home import millrace_home
from millrace.testing.stack import Stack, start_stack

NUM_STREAMS = 32
NUM_TOKENS = 96
# Short prompts: a run is nearly all decoding, where every token passes every service.
PROMPT_TOKENS = 30


def telemetry_cost(num_pairs: int, dtype: str) -> dict[str, Any]:
    """Medians over interleaved pairs; cost is 1 - with / without, in percent."""
    with ExitStack() as stacks:
        sides = {}
        for side in ("true", "false"):
            home = stacks.enter_context(tempfile.TemporaryDirectory(prefix="millrace-bench-"))
            flags = ["--dtype", dtype, "--telemetry", side]
            sides[side] = stacks.enter_context(
                start_stack(Path(home), millrace_home().models, *flags)
            )
        pairs = asyncio.run(_pairs(num_pairs, sides["true"], sides["false"]))
    costs = [100 * (1 - traced / plain) for traced, plain in pairs]
    return {
        "cost_percent": round(median(costs), 2),
        "cost_percent_pairs": [round(cost, 2) for cost in costs],
        "tokens_per_s_with": round(median(traced for traced, _ in pairs), 2),
        "tokens_per_s_without": round(median(plain for _, plain in pairs), 2),
    }


async def _pairs(num_pairs: int, traced: Stack, plain: Stack) -> list[tuple[float, float]]:
    targets = [GrpcTarget(traced.grpc_address), GrpcTarget(plain.grpc_address)]
    prompts = Prompts(time.time_ns(), PROMPT_TOKENS, PROMPT_TOKENS)
    pairs = []
    for index in range(-1, num_pairs):
        texts = prompts.draw(NUM_STREAMS)
        rates = {}
        # The side that goes first changes, so that neither has the quieter half of the minute.
        for target in targets if index % 2 else reversed(targets):
            load = await run_load(target, texts, NUM_STREAMS, NUM_TOKENS)
            rates[target] = load.figures()["tokens_per_s"]
        # The first pair warms both up.
        if index >= 0:
            pairs.append((rates[targets[0]], rates[targets[1]]))
    for target in targets:
        await target.close()
    return pairs
