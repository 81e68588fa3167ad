"""One choice of a live request: tokens accepted from frames, text made of them. No I/O.

Tokens go through three counts: accepted (`token_ids`, what a resume tells the scheduler), decoded
(their text is known) and emitted (handed to the client).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from millrace.core.detokenize import NUM_PROMPT_TAIL_IDS, DecodedRow, DecodeRow
from millrace.core.tokens import FinishReason, TokenDelta, TokenLogprobs

from .stop_strings import StopScanner, StopStrings


class Acceptance(Enum):
    """What became of a delta."""

    NEW = auto()  # it brought tokens or the end
    STALE = auto()  # nothing in it was new
    GAP = auto()  # tokens before it are missing; it was dropped


@dataclass(frozen=True, slots=True)
class Progress:
    """What the client may see now; `finish` is NONE while the choice goes on. `num_at_start`: how
    many of the tokens begin the text, all but the last of these without showing anything."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish: FinishReason
    num_at_start: int = 0


class ChoiceOutput:
    """Accepts deltas in any state of repetition and gives text that depends on the tokens alone.

    prompt_token_ids: the prompt that the text goes on from; empty for an answer, whose text begins
    anew. hidden_ids: special tokens, as far as they matter to the request.
    """

    def __init__(
        self,
        index: int,
        stop_strings: StopStrings,
        stop_token_ids: frozenset[int],
        min_tokens: int = 0,
        prompt_token_ids: Sequence[int] = (),
        hidden_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.finish = FinishReason.NONE  # as the scheduler told it
        self.ended = FinishReason.NONE  # as the client is told it
        self.matched_stop: str | None = None
        self.num_emitted = 0
        self._logprobs: list[TokenLogprobs] = []
        self._stop_strings = stop_strings
        self._has_marks = bool(stop_strings.marks)
        self._scanner = StopScanner(stop_strings)
        self._has_stops = bool(stop_strings.stops)
        self._stop_token_ids = stop_token_ids
        self._min_tokens = min_tokens
        self._num_decoded = 0
        self._num_asked = 0
        self._tail_ids = tuple(prompt_token_ids[-NUM_PROMPT_TAIL_IDS:])
        self._num_tail_shown = len(self._tail_ids)
        self._is_after_prompt = bool(self._tail_ids)
        self._hidden_ids = hidden_ids
        self._is_at_start = hidden_ids.issuperset(self._tail_ids)

    @property
    def is_ended(self) -> bool:
        """True where the client has been told the end."""
        return self.ended is not FinishReason.NONE

    @property
    def is_settled(self) -> bool:
        """True where the scheduler has told the end."""
        return self.finish is not FinishReason.NONE

    def accept(self, delta: TokenDelta) -> Acceptance:
        """Takes what is new in a delta; tokens already here are skipped, a gap takes nothing."""
        num_known = len(self.token_ids)
        if delta.start_index > num_known:
            return Acceptance.GAP
        if self.is_settled:
            return Acceptance.STALE
        num_double = num_known - delta.start_index
        fresh = delta.token_ids[num_double:]
        ends = (
            delta.finish is not FinishReason.NONE
            and delta.start_index + len(delta.token_ids) >= num_known
        )
        if not fresh and not ends:
            return Acceptance.STALE
        self.token_ids.extend(fresh)
        if len(delta.logprobs) == len(delta.token_ids):
            self._logprobs.extend(delta.logprobs[num_double:])
        if ends:
            self.finish = delta.finish
        return Acceptance.NEW

    def next_row(self) -> DecodeRow | None:
        """The next tokens to decode; None where there are none. Answer it with `apply`."""
        if self.is_ended:
            return None
        upto = self._num_with_text()
        if self._has_stops and self._num_decoded < self._min_tokens - 1:
            # A row lies wholly before or wholly after the first token that may complete a match.
            upto = min(upto, self._min_tokens - 1)
        if self._has_marks:
            upto = self._upto_mark(upto)
        is_final = self.is_settled and upto == self._num_with_text()
        if upto <= self._num_decoded and not is_final:
            return None
        self._num_asked = upto
        return DecodeRow(
            tail_ids=self._tail_ids,
            num_tail_shown=self._num_tail_shown,
            new_ids=tuple(self.token_ids[self._num_decoded : upto]),
            final=is_final,
            is_after_prompt=self._is_after_prompt,
        )

    def probe_rows(self, row: DecodeRow, decoded: DecodedRow) -> list[DecodeRow]:
        """Rows that tell which token completes a stop string; empty where that is clear.

        A frame may bring several tokens of one choice (after a resume, say). Their texts are asked
        for one prefix at a time, all from the same tail.
        """
        if not self._has_stops or len(row.new_ids) < 2 or not self._has_match(row, decoded):
            return []
        return [
            replace(row, new_ids=row.new_ids[:length], final=False)
            for length in range(1, len(row.new_ids))
        ]

    def apply(
        self, row: DecodeRow, decoded: DecodedRow, probes: Sequence[DecodedRow] = ()
    ) -> Progress:
        """Takes the answer to `next_row`, with the answers to `probe_rows`."""
        for length, probe in enumerate(probes, start=1):
            probed = replace(row, new_ids=row.new_ids[:length])
            if self._has_match(probed, probe):
                row, decoded = probed, probe
                break
        scan = self._scanner.feed(self._with_mark(row, decoded), can_stop=self._can_stop(row))
        if scan.stop is not None:
            self.matched_stop = self._stop_strings.original(scan.stop)
            return self._emit(scan.text, self._num_decoded + len(row.new_ids), FinishReason.STOP)
        self._num_decoded = self._num_asked
        self._tail_ids = decoded.tail_ids
        self._num_tail_shown = decoded.num_tail_shown
        self._is_after_prompt = False
        if row.final:
            self.matched_stop = self._matched_token()
            return self._emit(scan.text + self._scanner.flush(), len(self.token_ids), self.finish)
        return self._emit(scan.text, self._num_decoded, FinishReason.NONE)

    def abort(self) -> None:
        """Ends the choice where it is."""
        self.ended = FinishReason.ABORT

    def _emit(self, text: str, upto: int, finish: FinishReason) -> Progress:
        start, self.num_emitted = self.num_emitted, upto
        self.ended = finish
        ids = self.token_ids[start:upto]
        return Progress(
            self._stop_strings.visible(text) if self._has_marks else text,
            ids,
            self._logprobs[start:upto],
            finish,
            self._num_at_start(ids) if self._is_at_start else 0,
        )

    def _num_at_start(self, ids: Sequence[int]) -> int:
        """Up to the first id that shows something."""
        for number, token_id in enumerate(ids, start=1):
            if token_id not in self._hidden_ids:
                self._is_at_start = False
                return number
        return len(ids)

    def _matched_token(self) -> str | None:
        """The stop string that the last token is, if the scheduler stopped there."""
        if self.finish is not FinishReason.STOP or not self.token_ids:
            return None
        return self._stop_strings.token_ids.get(self.token_ids[-1])

    def _upto_mark(self, upto: int) -> int:
        """A row ends with the first token in it that a mark stands for."""
        marks = self._stop_strings.marks
        for number in range(self._num_decoded, upto):
            if self.token_ids[number] in marks:
                return number + 1
        return upto

    def _with_mark(self, row: DecodeRow, decoded: DecodedRow) -> str:
        if not self._has_marks or not row.new_ids:
            return decoded.text
        return decoded.text + self._stop_strings.marks.get(row.new_ids[-1], "")

    def _can_stop(self, row: DecodeRow) -> bool:
        """True where the row's first token, or the last one before it, reaches `min_tokens`."""
        return self._num_decoded + bool(row.new_ids) >= self._min_tokens

    def _has_match(self, row: DecodeRow, decoded: DecodedRow) -> bool:
        text = self._with_mark(row, decoded)
        scan = self._scanner.copy().feed(text, can_stop=self._can_stop(row))
        return scan.stop is not None

    def _num_with_text(self) -> int:
        """Tokens that are text: all but a last one that is a stop token."""
        num = len(self.token_ids)
        if self.finish is FinishReason.STOP and num and self.token_ids[-1] in self._stop_token_ids:
            return num - 1
        return num
