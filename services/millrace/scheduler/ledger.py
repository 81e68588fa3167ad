"""Every request that this scheduler holds a message for, from its fetch to its acknowledgement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from millrace.bus.base import HeldRequest
from millrace.core.request import QueuedRequest
from millrace.core.tokens import Failed, FinishReason, Scheduled, TokenDelta, TokenLogprobs

from .request_spans import RequestSpans


@dataclass(slots=True)
class ChoiceOutput:
    """The tokens of one choice so far; `logprobs`, where asked for, is of the last ones of them."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason = FinishReason.NONE

    def since(self, request_id: str, choice: int, begin: int) -> TokenDelta:
        """What comes after the first `begin` tokens."""
        # Tokens taken over from an earlier owner came without.
        num_without_logprobs = len(self.token_ids) - len(self.logprobs)
        return TokenDelta(
            request_id=request_id,
            choice=choice,
            start_index=begin,
            token_ids=self.token_ids[begin:],
            finish=self.finish,
            logprobs=self.logprobs[max(0, begin - num_without_logprobs) :],
        )


@dataclass(slots=True)
class LedgerEntry:
    """One held request. `is_terminal`: its last frame is sent, the gateway's `Done` is awaited."""

    held: HeldRequest
    request: QueuedRequest
    spans: RequestSpans
    outputs: dict[int, ChoiceOutput] = field(default_factory=dict)
    scheduled: Scheduled | None = None
    failed: Failed | None = None
    is_terminal: bool = False

    def resume(self, cursors: Mapping[int, Sequence[int]]) -> None:
        """Takes over the tokens that the gateway has accepted from an earlier owner."""
        for choice, token_ids in cursors.items():
            self.outputs[choice] = ChoiceOutput(list(token_ids))
        self.spans.taken_over(choice for choice, token_ids in cursors.items() if token_ids)

    def record(self, delta: TokenDelta, worker_id: str = "") -> None:
        """Keeps what a step of a worker produced."""
        output = self.outputs.setdefault(delta.choice, ChoiceOutput())
        if delta.token_ids:
            self.spans.token_arrived(delta.choice, worker_id)
        output.token_ids.extend(delta.token_ids)
        output.logprobs.extend(delta.logprobs)
        output.finish = delta.finish

    def end(self, error_reason: str = "") -> None:
        """The last frame is on its way."""
        if not self.is_terminal:
            self.is_terminal = True
            self.spans.end(error_reason)


class Ledger:
    """Held requests by id."""

    def __init__(self) -> None:
        self._entries: dict[str, LedgerEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def __iter__(self) -> Iterator[LedgerEntry]:
        return iter(list(self._entries.values()))

    def add(self, entry: LedgerEntry) -> None:
        """Holds a request."""
        self._entries[entry.request.request_id] = entry

    def get(self, request_id: str) -> LedgerEntry | None:
        """None where it is not held here."""
        return self._entries.get(request_id)

    def pop(self, request_id: str) -> LedgerEntry | None:
        """Takes a request out, to settle its message."""
        return self._entries.pop(request_id, None)

    def of_gateway(self, gateway_id: str) -> list[LedgerEntry]:
        """The requests whose clients hang on one gateway."""
        return [entry for entry in self if entry.request.gateway_id == gateway_id]

    def gateway_ids(self) -> set[str]:
        """Every gateway that somebody waits at."""
        return {entry.request.gateway_id for entry in self}
