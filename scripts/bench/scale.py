"""How much is measured: in full, or a smoke test of seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers of rounds, rows and requests; times in seconds.

    `decode_cases` are (rows, tokens of context), `attention_chunks` (new tokens, context).
    `round_s` is how long one case may take in one round, at the least one call.
    """

    rounds: int = 5
    round_s: float = 0.25
    kernel_rows: tuple[int, ...] = (1, 4, 8, 32, 128)
    attention_rows: tuple[int, ...] = (1, 2, 8, 32)
    attention_contexts: tuple[int, ...] = (128, 512, 2048, 8192)
    attention_chunks: tuple[tuple[int, int], ...] = (
        (32, 32),
        (128, 128),
        (512, 512),
        (32, 2048),
        (128, 2048),
        (512, 4096),
    )
    kernel_round_s: float = 0.03
    decode_cases: tuple[tuple[int, int], ...] = (
        (1, 300),
        (4, 300),
        (8, 300),
        (32, 300),
        (8, 2048),
        (2, 8192),
    )
    prefill_tokens: int = 512
    streams: tuple[int, ...] = (1, 8, 32)
    requests: tuple[int, ...] = (4, 16, 48)
    output_tokens: int = 64
    overhead_requests: int = 20
    idle_s: float = 15.0
    measures_second_worker: bool = True
    claim_rounds: int = 3
    claim_requests: int = 24
    arrivals: int = 96
    perplexity_tokens: int = 12288


FULL = Scale()
QUICK = Scale(
    rounds=3,
    round_s=0.05,
    kernel_rows=(1, 32),
    attention_rows=(1, 8),
    attention_contexts=(128, 512),
    attention_chunks=((128, 128), (32, 512)),
    kernel_round_s=0.01,
    decode_cases=((1, 300), (8, 300)),
    prefill_tokens=128,
    streams=(1, 4),
    requests=(2, 8),
    output_tokens=16,
    overhead_requests=4,
    idle_s=2.0,
    measures_second_worker=False,
    claim_rounds=1,
    claim_requests=8,
    arrivals=16,
    perplexity_tokens=1024,
)
