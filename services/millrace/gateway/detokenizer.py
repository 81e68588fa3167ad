"""Turning the tokens of a model's frames into text: one Decode call for all rows of a frame.

The frame loop only marks choices and never waits. Where the tokenizer is slower than the frames,
several frames are decoded together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.core.errors import InternalError, MillraceError, Unavailable
from millrace.core.tokens import TokenLogprobs

from .choice_output import ChoiceOutput, Progress
from .events import Delta, PositionLogprobs, TokenLogprob
from .live_request import LiveRequest
from .ports import Tokenizer

_log = logging.getLogger(__name__)

# In all longer than a lone tokenizer takes to start again, on a busy machine too.
RETRY_DELAYS_S = (0.05, 0.25, 1.0, 2.0, 4.0)


@dataclass(slots=True)
class _Job:
    live: LiveRequest
    choice: ChoiceOutput
    row: DecodeRow
    decoded: DecodedRow
    probes: list[DecodedRow]


class Detokenizer:
    """The text side of one model. `on_ended` hears when a request's last choice has ended here."""

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        on_ended: Callable[[LiveRequest], None],
        on_failed: Callable[[LiveRequest, MillraceError], None],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._on_ended = on_ended
        self._on_failed = on_failed
        self._pending: dict[tuple[str, int], tuple[LiveRequest, ChoiceOutput]] = {}
        self._wake = asyncio.Event()
        # By id, and whether the token begins a text.
        self._pieces: dict[tuple[int, bool], bytes] = {}

    def add(self, live: LiveRequest, choice: ChoiceOutput) -> None:
        """A choice has tokens to decode, or has ended."""
        self._pending[live.request_id, choice.index] = (live, choice)
        self._wake.set()

    async def run(self) -> None:
        """Decodes until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending = self._pending, {}
            try:
                await self._decode(list(pending.values()))
            except MillraceError as error:
                self._fail(pending.values(), error)
            except Exception:
                _log.exception("decoding for %s failed", self._model)
                self._fail(pending.values(), InternalError("the output could not be decoded"))

    async def _decode(self, pending: list[tuple[LiveRequest, ChoiceOutput]]) -> None:
        asked: list[tuple[LiveRequest, ChoiceOutput, DecodeRow]] = []
        for live, choice in pending:
            row = None if live.is_over else choice.next_row()
            if row is not None:
                asked.append((live, choice, row))
        if not asked:
            return
        start_unix_ns, start_ns = time.time_ns(), time.monotonic_ns()
        jobs = await self._ask(asked)
        # A request that has ended meanwhile keeps the end that its client was told.
        progress = [
            (job, job.choice.apply(job.row, job.decoded, job.probes))
            for job in jobs
            if not job.live.is_over
        ]
        await self._learn_pieces(made for _, made in progress)
        busy_ns = time.monotonic_ns() - start_ns
        for job, made in progress:
            _mark_call(job.live, start_unix_ns, busy_ns)
            self._deliver(job, made)

    async def _ask(self, asked: list[tuple[LiveRequest, ChoiceOutput, DecodeRow]]) -> list[_Job]:
        decoded = await self._call([row for _, _, row in asked])
        jobs = [
            _Job(live, choice, row, answer, [])
            for (live, choice, row), answer in zip(asked, decoded, strict=True)
        ]
        probes = [job.choice.probe_rows(job.row, job.decoded) for job in jobs]
        if any(probes):
            answers = iter(await self._call([row for rows in probes for row in rows]))
            for job, rows in zip(jobs, probes, strict=True):
                job.probes = [next(answers) for _ in rows]
        return jobs

    async def _call(self, rows: list[DecodeRow]) -> list[DecodedRow]:
        """Decode is a pure function of its rows, so a broken call is simply made again."""
        for delay_s in RETRY_DELAYS_S:
            try:
                return await self._tokenizer.decode(self._model, rows)
            except Unavailable as error:
                _log.warning(
                    "text of %s cannot be decoded, trying again: %s", self._model, error.message
                )
                await asyncio.sleep(delay_s)
        return await self._tokenizer.decode(self._model, rows)

    async def _learn_pieces(self, progress: Iterable[Progress]) -> None:
        wanted = {each for made in progress for each in _tokens_of(made)}
        missing = sorted(wanted - self._pieces.keys())
        for is_at_start in (False, True):
            ids = [token_id for token_id, at_start in missing if at_start is is_at_start]
            if ids:
                pieces = await self._tokenizer.pieces(self._model, ids, is_at_start=is_at_start)
                keys = [(token_id, is_at_start) for token_id in ids]
                self._pieces.update(zip(keys, pieces, strict=True))

    def _deliver(self, job: _Job, made: Progress) -> None:
        live, choice = job.live, job.choice
        if live.is_over:
            return
        live.push_delta(Delta(choice.index, made.text, made.token_ids, self._logprobs(made)))
        if choice.is_ended:
            live.push_end(choice)
            if live.is_over:
                self._on_ended(live)
        elif choice.next_row() is not None:
            self.add(live, choice)

    def _logprobs(self, made: Progress) -> tuple[PositionLogprobs, ...]:
        return tuple(
            PositionLogprobs(
                self._named(token_id, is_at_start, entry.chosen),
                tuple(self._named(other, is_at_start, logprob) for other, logprob in entry.top),
            )
            for token_id, is_at_start, entry in _positions(made)
        )

    def _named(self, token_id: int, is_at_start: bool, logprob: float) -> TokenLogprob:
        return TokenLogprob(token_id, self._pieces[token_id, is_at_start], logprob)

    def _fail(
        self, pending: Iterable[tuple[LiveRequest, ChoiceOutput]], error: MillraceError
    ) -> None:
        for live, _ in pending:
            self._on_failed(live, error)


def _positions(made: Progress) -> Iterator[tuple[int, bool, TokenLogprobs]]:
    """Of every token with log-probabilities: its id, whether it begins the text, and these."""
    tokens = zip(made.token_ids, made.logprobs, strict=False)
    for number, (token_id, entry) in enumerate(tokens):
        yield token_id, number < made.num_at_start, entry


def _tokens_of(made: Progress) -> Iterator[tuple[int, bool]]:
    for token_id, is_at_start, entry in _positions(made):
        yield token_id, is_at_start
        for other, _ in entry.top:
            yield other, is_at_start


def _mark_call(live: LiveRequest, start_unix_ns: int, busy_ns: int) -> None:
    if not live.num_detokenize_calls:
        live.detokenize_start_unix_ns = start_unix_ns
    live.num_detokenize_calls += 1
    live.detokenize_busy_ns += busy_ns
    live.detokenize_end_unix_ns = start_unix_ns + busy_ns
