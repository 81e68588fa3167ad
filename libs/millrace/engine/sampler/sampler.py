"""The sampler: one step's logits to one token per row.

Order per row: penalties and logit bias; temperature; top_k; top_p; min_p; then the draw. At
temperature 0 it is the likeliest token, the lowest id where logits tie. Nothing is remembered
between steps: a row's token depends on its logits and its `SampleRow` alone, so it is the same in
any batch.

Random and edited rows are sampled on the host, whatever the device; plain greedy rows stay on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from millrace.core.sampling import SamplingSpec
from millrace.core.tokens import TokenLogprobs

from .drawer import Drawer, DrawRequest
from .gumbel import MAX_SHARED_TOKENS, Draw, draw_token, draw_tokens, possible_winners
from .logprobs import token_logprobs
from .penalties import apply_bias, apply_penalties, has_pending_stops, mask_stops
from .truncation import Ids, Logits, is_truncated, kept_tokens

if TYPE_CHECKING:
    import torch

NO_TOKEN = -1


@dataclass(slots=True)
class SampleRow:
    """A row that samples: `token_ids` is its prompt and output so far, and is only read."""

    spec: SamplingSpec
    token_ids: list[int]
    num_prompt_tokens: int
    choice: int
    stop_token_ids: tuple[int, ...]

    @property
    def is_edited(self) -> bool:
        """True where something besides temperature changes the logits."""
        return (
            self.spec.has_penalties
            or len(self.spec.logit_bias) > 0
            or has_pending_stops(
                self.spec, len(self.token_ids) - self.num_prompt_tokens, self.stop_token_ids
            )
        )

    @property
    def is_plain_greedy(self) -> bool:
        """True where the row is the argmax of its logits and nothing more."""
        return self.spec.is_greedy and self.spec.top_logprobs is None and not self.is_edited


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row's next token, or `NO_TOKEN`; `logprobs` where its spec asks for them."""

    token_id: int
    logprobs: TokenLogprobs | None


class Sampler:
    """Draws tokens for a model with `vocab_size` logits, in an array or on any device.

    `drawer` draws what it can of the rows whose logits nothing edits; no token depends on it.
    """

    def __init__(self, vocab_size: int, drawer: Drawer | None = None) -> None:
        self.vocab_size = vocab_size
        self._drawer = drawer
        self._all_ids: Ids = np.arange(vocab_size)

    def sample(
        self,
        logits: Logits | torch.Tensor,
        rows: Sequence[SampleRow],
        likeliest: Sequence[int] | None = None,
    ) -> list[Sampled]:
        """One token per row from `logits` [R, V] of any floating dtype; they stay as they are.

        It is `NO_TOKEN` for a row one of whose logits is NaN or +infinity, or none finite. Where
        `likeliest` [R] is given, rows that are plain greedy take it and have no logits.
        """
        logits = logits[:, : self.vocab_size]
        plain = [i for i, row in enumerate(rows) if row.is_plain_greedy]
        others = [i for i, row in enumerate(rows) if not row.is_plain_greedy]
        if likeliest is None:
            greedy = _argmax(logits, plain) if plain else []
        else:
            greedy = [likeliest[i] for i in plain]
        sampled = {i: Sampled(token, None) for i, token in zip(plain, greedy, strict=True)}
        if not others:
            return list(sampled.values())
        host, places = _rows_on_host(logits, others)
        # A vanishing temperature or penalty may overflow to infinity; that is its meaning.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            results = self._sample_on_host(host, places, [rows[i] for i in others])
        sampled.update(zip(others, results, strict=True))
        return [sampled[i] for i in range(len(rows))]

    def _sample_on_host(
        self, host: Logits, places: Sequence[int], rows: Sequence[SampleRow]
    ) -> list[Sampled]:
        """One token per row; the logits of `rows[i]` are `host[places[i]]`."""
        drawn = self._draw_quickly(host, places, rows)
        left = [i for i in range(len(rows)) if i not in drawn]
        exact = self._draw_exactly([host[places[i]] for i in left], [rows[i] for i in left])
        drawn.update(zip(left, exact, strict=True))
        return [_sampled(drawn[i], host[places[i]], row.spec) for i, row in enumerate(rows)]

    def _draw_quickly(
        self, host: Logits, places: Sequence[int], rows: Sequence[SampleRow]
    ) -> dict[int, int]:
        """The tokens, by index into `rows`, that the drawer decides."""
        if self._drawer is None:
            return {}
        fit = [i for i, row in enumerate(rows) if not row.spec.is_greedy and not row.is_edited]
        if not fit:
            return {}
        requests = [
            DrawRequest(places[i], rows[i].spec, len(rows[i].token_ids), rows[i].choice)
            for i in fit
        ]
        tokens = self._drawer.draw(host, requests)
        return {i: token for i, token in zip(fit, tokens, strict=True) if token is not None}

    def _draw_exactly(self, raw: Sequence[Logits], rows: Sequence[SampleRow]) -> list[int]:
        token_ids = [NO_TOKEN] * len(rows)
        shared: dict[int, Draw] = {}
        for i, row in enumerate(rows):
            logits = _edited(raw[i], row)
            draw = self._prepare(logits, row)
            # The highest of them is NaN if any is. Edits may well make infinities.
            peak = draw.peak if logits is raw[i] else float(raw[i].max())
            if not math.isfinite(peak):
                continue
            if len(draw.token_ids) == 1:
                token_ids[i] = int(draw.token_ids[0])
            elif len(draw.token_ids) <= MAX_SHARED_TOKENS:
                shared[i] = draw
            else:
                token_ids[i] = draw_token(draw)
        for i, token_id in zip(shared, draw_tokens(list(shared.values())), strict=True):
            token_ids[i] = token_id
        return token_ids

    def _prepare(self, logits: Logits, row: SampleRow) -> Draw:
        """The draw of one row over `logits` [V]; over one token where there is nothing to draw."""
        spec = row.spec
        likeliest = int(logits.argmax())
        peak = float(logits[likeliest])
        draw = Draw(
            seed=spec.seed,
            position=len(row.token_ids),
            choice=row.choice,
            temperature=spec.temperature,
            peak=peak,
            token_ids=self._all_ids[likeliest : likeliest + 1],
            logits=logits[likeliest : likeliest + 1],
        )
        if spec.is_greedy or not math.isfinite(peak):
            return draw
        if not is_truncated(spec, len(logits)):
            return possible_winners(draw, logits, self._all_ids[: len(logits)])
        return draw.over(logits, kept_tokens(logits, peak, spec))


def _edited(raw: Logits, row: SampleRow) -> Logits:
    """`raw` [V] with penalties, bias and pending stops applied; `raw` itself stays as it is."""
    if not row.is_edited:
        return raw
    spec = row.spec
    logits = raw.copy()
    apply_penalties(logits, spec, row.token_ids, row.num_prompt_tokens)
    apply_bias(logits, spec.logit_bias)
    if has_pending_stops(spec, len(row.token_ids) - row.num_prompt_tokens, row.stop_token_ids):
        mask_stops(logits, row.stop_token_ids)
    return logits


def _sampled(token_id: int, raw: Logits, spec: SamplingSpec) -> Sampled:
    if token_id == NO_TOKEN or spec.top_logprobs is None:
        return Sampled(token_id, None)
    return Sampled(token_id, token_logprobs(raw, token_id, spec.top_logprobs))


def _rows_on_host(
    logits: Logits | torch.Tensor, rows: Sequence[int]
) -> tuple[Logits, Sequence[int]]:
    """Logits in float32 on the host, copied only if need be; and where in them `rows` are."""
    if isinstance(logits, np.ndarray):
        return logits, rows
    is_there = logits.device.type == "cpu" and logits.dtype.itemsize == 4
    if is_there and logits.stride(1) == 1:
        return logits.detach().numpy(), rows
    return _to_host(_select(logits, rows)), range(len(rows))


def _select(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    return logits if len(rows) == len(logits) else logits[list(rows)]


def _to_host(logits: torch.Tensor) -> Logits:
    host: Logits = logits.detach().cpu().float().contiguous().numpy()
    return host


def _argmax(logits: Logits | torch.Tensor, rows: Sequence[int]) -> list[int]:
    """The likeliest id of each of `rows`, the lowest where logits tie; `NO_TOKEN` if that is NaN,
    as it is where any is, or infinite."""
    if isinstance(logits, np.ndarray):
        host = logits[list(rows)]
    else:
        logits = _select(logits, rows)
        if logits.device.type != "cpu":
            return argmax_on_device(logits)
        # numpy is several times as fast as torch on the CPU, above all in bfloat16.
        host = _to_host(logits)
    likeliest = host.argmax(axis=-1)
    peaks = host[np.arange(len(host)), likeliest]
    return [int(i) for i in np.where(np.isfinite(peaks), likeliest, NO_TOKEN)]


def argmax_on_device(logits: torch.Tensor) -> list[int]:
    """The likeliest id of each row of `logits` [R, V], or `NO_TOKEN`, in one transfer."""
    found = logits.argmax(dim=-1)
    peaks = logits.gather(-1, found[:, None])[:, 0]
    return [int(i) for i in found.masked_fill(~peaks.isfinite(), NO_TOKEN).tolist()]
