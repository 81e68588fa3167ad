"""A check at load: is what the generic route serves what transformers computes?

`exact_length` has shown that layers name their windows and carry nothing from token to token beside
their attention. Here each layer's attention over the paged cache is compared with the model's own,
its mask included, and a few tokens are passed through the whole engine alone, in chunks, beside
another row and behind a cached prefix: their logits must agree.

What is not seen: what a model does only to tokens that are not among these, as an expert that none
of them chooses; what it does by the number of tokens of a step, once they are more than these; and
with int8 K/V, faults of attention that are no larger than what those may cost.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.core.model import ModelInfo
from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission
from millrace.engine.attention.base import AttentionStep
from millrace.engine.batch import Batch, Work, build_batch
from millrace.engine.kv_cache import PagedCache
from millrace.engine.row import Row, RowTable
from millrace.engine.tensors import one_thread

from .base import Logits
from .generic import refused_if_it_fails
from .own_attention import COMPARE_NAME, Comparison
from .watch import Watchable

NUM_TOKENS = 12
FEWEST_TOKENS = 4
NUM_ROWS = 3
# A window is crossed by so many tokens if that takes no longer.
TOKENS_BEYOND = 4
MAX_SECONDS = 2.0
# Seen of each layer's output, in 85 types: 1e-6 in float32, up to 1 % in bfloat16 and 2.5 % with
# int8 K/V, which cost keys with outliers much more. A mask, a factor or sinks that are left out
# make 5 to 100 % in the tests.
ATTENTION_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.01, "float16": 0.003}
INT8_KV_TOLERANCE = 0.3
# Logits, in standard deviations of a row's. In low precision one rounding can exchange an expert
# and so change a row by all it has: the median row is looked at, not the worst.
LOGITS_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.3, "float16": 0.3}


class CheckedRunner(Protocol):
    """What of a `ModelRunner` is checked."""

    cache: PagedCache
    info: ModelInfo

    def forward(self, batch: Batch) -> Logits:
        """See `ModelRunner.forward`."""
        ...

    def step(self, batch: Batch) -> AttentionStep:
        """See `ModelRunner.step`."""
        ...


def check_served(model: Watchable, runner: CheckedRunner, windows: Collection[int]) -> None:
    """Raises `UnsupportedModel` unless the engine's results are those of transformers.

    `windows` are the lengths of the layers' sliding windows; those that cost little are crossed.
    Raises `ConfigError` if the cache is too small to check anything.
    """
    cache, info = runner.cache, runner.info
    most = min(info.max_model_len, cache.num_blocks * cache.block_size)
    if most < FEWEST_TOKENS:
        raise ConfigError(
            f"{info.architecture} is checked at load, for which {cache.num_blocks} blocks of "
            f"{cache.block_size} and {info.max_model_len} tokens are too few",
            field="num_blocks",
        )
    check = _Check(model, runner)
    num_tokens = min(NUM_TOKENS, most)
    with torch.inference_mode(), one_thread():
        started_s = time.monotonic()
        alone = check.compare_attention(num_tokens)
        s_per_token = (time.monotonic() - started_s) / num_tokens
        check.compare_rows(alone)
        for beyond in sorted(window + TOKENS_BEYOND for window in windows):
            if num_tokens < beyond <= most and beyond * s_per_token <= MAX_SECONDS:
                check.compare_attention(beyond)


class _Check:
    """Rows over the first blocks of the cache."""

    def __init__(self, model: Watchable, runner: CheckedRunner) -> None:
        self._model = model
        self._runner = runner
        self._info = runner.info

    def compare_attention(self, num_tokens: int) -> torch.Tensor:
        """Each layer's attention for one row with the model's own; returns the row's logits."""
        self._seat(num_tokens)
        batch = self._batch((self._admit(0, num_tokens), num_tokens))
        has_int8_kv = "kv-int8" in self._info.quantization
        tolerance = INT8_KV_TOLERANCE if has_int8_kv else ATTENTION_TOLERANCES[self._info.dtype]
        comparison = Comparison(self._runner.step(batch), tolerance)
        tokens, positions = batch.input_ids.tolist(), batch.positions.tolist()
        return self._model.run(COMPARE_NAME, tokens, positions, comparison).float()

    def compare_rows(self, alone: torch.Tensor) -> None:
        """The logits of the last row with those in chunks, beside a row and behind a prefix."""
        num_tokens = len(alone)
        half, most = num_tokens // 2, num_tokens - 3
        if self._runner.cache.num_blocks < NUM_ROWS * self._blocks_per_row:
            return self._compare_chunks(alone)
        chunked, shorter = self._admit(1, num_tokens), self._admit(2, half)
        self._compare(alone, "in chunks beside another", (chunked, most), (shorter, half - 1))
        self._rows.release(0)
        cached = self._admit(0, num_tokens, num_cached=most)
        self._compare(alone, "behind a cached prefix", (cached, 3), (chunked, 2), (shorter, 1))
        self._compare(alone, "in a step of one token", (chunked, 1))

    def _compare_chunks(self, alone: torch.Tensor) -> None:
        """For a cache that has no room for several rows."""
        num_tokens = len(alone)
        self._rows.release(0)
        row = self._admit(0, num_tokens)
        for part in (num_tokens - 3, 2, 1):
            self._compare(alone, "in chunks", (row, part))

    def _seat(self, num_tokens: int) -> None:
        self._rows = RowTable(NUM_ROWS)
        self._blocks_per_row = -(-num_tokens // self._runner.cache.block_size)
        num_blocks = min(self._runner.cache.num_blocks, NUM_ROWS * self._blocks_per_row)
        self._runner.cache.clear_blocks(range(num_blocks))

    def _admit(self, index: int, num_tokens: int, num_cached: int = 0) -> Row:
        first = index * self._blocks_per_row
        return self._rows.admit(
            Admission(
                row=index,
                row_epoch=0,
                token_ids=[(7 * place + 3) % self._info.vocab_size for place in range(num_tokens)],
                num_prompt_tokens=num_tokens,
                num_cached_tokens=num_cached,
                choice=0,
                blocks=list(range(first, first + self._blocks_per_row)),
                sampling=SamplingSpec(temperature=0.0),
                stop_token_ids=(),
                max_len=num_tokens + 1,
            )
        )

    def _batch(self, *parts: tuple[Row, int]) -> Batch:
        """A step of these rows that asks for every token's logits."""
        work = [Work(row, num_tokens) for row, num_tokens in parts]
        batch = build_batch(work, self._rows, self._runner.cache.block_size)
        every = np.arange(batch.num_tokens)
        wants = np.ones(batch.num_tokens, dtype=np.uint8)
        return replace(batch, sample_indices=every, wants_logits=wants)

    def _logits(self, *parts: tuple[Row, int]) -> torch.Tensor:
        with refused_if_it_fails(self._info.architecture):
            logits: Any = self._runner.forward(self._batch(*parts)).values
        for row, num_tokens in parts:
            row.num_computed_tokens += num_tokens
        return torch.as_tensor(logits).float()

    def _compare(self, alone: torch.Tensor, how: str, *parts: tuple[Row, int]) -> None:
        positions = self._batch(*parts).positions
        wanted = alone[torch.as_tensor(positions)]
        off = (self._logits(*parts) - wanted).square().mean(-1).sqrt() / wanted.std(-1).clamp(1e-6)
        exact = self._info.dtype == "float32" and self._info.quantization == "none"
        worst = float(off.max() if exact else off.median())
        if not worst <= LOGITS_TOLERANCES[self._info.dtype if exact else "bfloat16"]:
            raise UnsupportedModel(
                f"{self._info.architecture}: {how} a row's logits are {worst:.3g} standard "
                "deviations from those it has alone"
            )
