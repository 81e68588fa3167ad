"""How well a model predicts a given text: the figure that quantization is judged by.

The text is cut into windows that know nothing of each other, each behind the BOS of models that are
trained with one. The tokens of a window are given, not sampled, and every one but the first is
predicted from those before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from millrace.core.errors import ConfigError
from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission

from .batch import Work, build_batch
from .model_runner import ModelRunner
from .row import Row, RowTable

# Called after each step with the tokens done so far.
TokensDone = Callable[[int], None]
# Losses and most likely ids of consecutive predictions.
Judged = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Scores:
    """What one run made of a text: T tokens with each BOS; N = T - windows are predicted."""

    token_ids: npt.NDArray[np.int64]  # [T]
    window_tokens: int
    losses: npt.NDArray[np.float64]  # [N], negative log-likelihoods in nats
    best_ids: npt.NDArray[np.int64]  # [N], most likely token of each prediction

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return math.exp(float(self.losses.mean()))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run against a reference run over the same windows, in percent."""

    perplexity_change_percent: float
    # One standard error of the change; predictions are paired, so it is far below that of either.
    standard_error_percent: float
    top1_agreement_percent: float


def compare(scores: Scores, reference: Scores) -> Comparison:
    """Raises `ConfigError` where the two did not read the same tokens in the same windows."""
    if scores.window_tokens != reference.window_tokens or not np.array_equal(
        scores.token_ids, reference.token_ids
    ):
        raise ConfigError("the reference was taken over other tokens or windows", field="reference")
    changes = scores.losses - reference.losses
    ratio = math.exp(float(changes.mean()))
    return Comparison(
        perplexity_change_percent=100 * (ratio - 1),
        standard_error_percent=100 * ratio * float(changes.std()) / math.sqrt(len(changes)),
        top1_agreement_percent=100 * float((scores.best_ids == reference.best_ids).mean()),
    )


class PerplexityRun:
    """Drives a runner over a text; `rows` windows go together, `chunk_tokens` of each in a step.

    One token and many rows is what decoding looks like, one row and many tokens is prefill.
    `bos_token_id` begins each window. Takes the runner's blocks 0 and up; raises `ConfigError`
    if they are too few.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        window_tokens: int,
        rows: int,
        chunk_tokens: int,
        bos_token_id: int | None = None,
    ) -> None:
        if not 2 <= window_tokens <= runner.info.max_model_len:
            raise ConfigError(
                f"window is {window_tokens} tokens; allowed are 2 to {runner.info.max_model_len}",
                field="window_tokens",
            )
        self._runner = runner
        self._window_tokens = window_tokens
        self._rows = rows
        self._chunk_tokens = chunk_tokens
        self._prefix = [] if bos_token_id is None else [bos_token_id]
        self._blocks_per_row = -(-window_tokens // runner.cache.block_size)
        needed = rows * self._blocks_per_row
        if needed > runner.cache.num_blocks:
            raise ConfigError(
                f"{rows} windows of {window_tokens} tokens need {needed} blocks, "
                f"the cache has {runner.cache.num_blocks}",
                field="rows",
            )

    def cut(self, token_ids: Sequence[int]) -> list[list[int]]:
        """The windows of a text; a last one of a single token would predict nothing."""
        length = self._window_tokens - len(self._prefix)
        windows = [
            [*self._prefix, *token_ids[start : start + length]]
            for start in range(0, len(token_ids), length)
        ]
        return [window for window in windows if len(window) > 1]

    def score(self, token_ids: Sequence[int], on_tokens: TokensDone | None = None) -> Scores:
        """Scores all windows."""
        windows = self.cut(token_ids)
        if not windows:
            raise ConfigError("a text needs at least two tokens", field="token_ids")
        losses: list[torch.Tensor] = []
        best: list[torch.Tensor] = []
        done = 0
        for start in range(0, len(windows), self._rows):
            group = windows[start : start + self._rows]
            for window_losses, window_best in self._forward_group(group, done, on_tokens):
                losses.append(window_losses)
                best.append(window_best)
            done += sum(map(len, group))
        return Scores(
            token_ids=np.concatenate([np.array(window, dtype=np.int64) for window in windows]),
            window_tokens=self._window_tokens,
            losses=torch.cat(losses).numpy(),
            best_ids=torch.cat(best).numpy(),
        )

    def _forward_group(
        self, windows: list[list[int]], done: int, on_tokens: TokensDone | None
    ) -> list[Judged]:
        """What came of each window, in their order."""
        table = RowTable(len(windows))
        rows = [self._admit(table, index, window) for index, window in enumerate(windows)]
        parts: list[list[Judged]] = [[] for _ in rows]
        while works := self._next_works(rows):
            for row, judged in self._step(table, works):
                parts[row.index].append(judged)
            if on_tokens is not None:
                on_tokens(done + sum(row.num_computed_tokens for row in rows))
        return [
            (torch.cat([loss for loss, _ in part]), torch.cat([ids for _, ids in part]))
            for part in parts
        ]

    def _admit(self, table: RowTable, index: int, window: list[int]) -> Row:
        first = index * self._blocks_per_row
        blocks = list(range(first, first + self._blocks_per_row))
        self._runner.cache.clear_blocks(blocks)
        return table.admit(
            Admission(
                row=index,
                row_epoch=0,
                token_ids=window,
                num_prompt_tokens=len(window),
                num_cached_tokens=0,
                choice=0,
                blocks=blocks,
                sampling=SamplingSpec(temperature=0.0),
                stop_token_ids=(),
                max_len=len(window) + 1,
            )
        )

    def _next_works(self, rows: list[Row]) -> list[Work]:
        """The last token of a window predicts nothing that is known, so it is not computed."""
        lefts = [len(row.token_ids) - 1 - row.num_computed_tokens for row in rows]
        return [
            Work(row, min(left, self._chunk_tokens))
            for row, left in zip(rows, lefts, strict=True)
            if left
        ]

    def _step(self, table: RowTable, works: list[Work]) -> list[tuple[Row, Judged]]:
        batch = build_batch(works, table, self._runner.cache.block_size)
        every = np.arange(batch.num_tokens)
        wants = np.ones(batch.num_tokens, dtype=np.uint8)
        asked = replace(batch, sample_indices=every, wants_logits=wants)
        logits = torch.as_tensor(self._runner.forward(asked).values)
        judged = []
        for index, item in enumerate(batch.work):
            row = item.row
            part = logits[batch.cu_seqlens_q[index] : batch.cu_seqlens_q[index + 1]]
            next_ids = row.token_ids[row.num_computed_tokens + 1 : item.context_len + 1]
            judged.append((row, _judge(part, next_ids)))
            row.num_computed_tokens = item.context_len
        return judged


def _judge(logits: torch.Tensor, next_ids: list[int]) -> Judged:
    """Loss in float64 and most likely id of each row of logits, on the host."""
    wide = logits.float()
    targets = torch.tensor(next_ids, device=logits.device)
    losses = wide.logsumexp(-1) - wide.gather(1, targets[:, None])[:, 0]
    return losses.double().cpu(), wide.argmax(-1).cpu()
