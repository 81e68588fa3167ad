"""From a step's outcome to one token frame per gateway.

Every request's tokens stay in its ledger entry until the gateway has confirmed the end, so that a
gateway that lost its stream can come back for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from millrace.core.errors import MillraceError
from millrace.core.tokens import Failed, TokenFrame
from millrace.wire.status import status_number

from .gateway_links import GatewayLinks
from .ledger import Ledger, LedgerEntry
from .outcome import StepOutcome


class FrameSender:
    """Sends frames on behalf of an owner epoch, which is 0 until the model is claimed."""

    def __init__(self, ledger: Ledger, links: GatewayLinks) -> None:
        self._ledger = ledger
        self._links = links
        self.owner_epoch = 0

    def send_outcome(
        self, outcome: StepOutcome, worker_id: str = "", silent_s: float = 0.0
    ) -> None:
        """At most one frame for each gateway.

        `worker_id` is the worker that the outcome comes from; `silent_s` is how long nothing had
        been heard of it when it was given up.
        """
        for request_id, choice in outcome.lost_rows:
            if entry := self._ledger.get(request_id):
                entry.spans.row_lost(choice, outcome.loss, worker_id, silent_s)
        frames: dict[str, TokenFrame] = {}
        for scheduled in outcome.scheduled:
            if entry := self._ledger.get(scheduled.request_id):
                entry.scheduled = scheduled
                entry.spans.admitted(scheduled)
                self._frame_for(frames, entry).scheduled.append(scheduled)
        for delta in outcome.deltas:
            entry = self._ledger.get(delta.request_id)
            if entry is not None:
                entry.record(delta, worker_id)
                self._frame_for(frames, entry).deltas.append(delta)
        for request_id, error in outcome.failed:
            if entry := self._ledger.get(request_id):
                self._frame_for(frames, entry).failed.append(_fail(entry, error))
        self._mark_entries(outcome, worker_id)
        for gateway_id, frame in frames.items():
            self._links.send(gateway_id, frame)

    def fail(self, entry: LedgerEntry, error: MillraceError) -> None:
        """Ends one request with an error."""
        frame = TokenFrame(self.owner_epoch, failed=[_fail(entry, error)])
        self._links.send(entry.request.gateway_id, frame)

    def refuse(self, gateway_id: str, request_id: str, error: MillraceError) -> None:
        """Tells a gateway of the end of a request that is not held any more."""
        failed = Failed(request_id, status_number(error), error.reason, error.message)
        self._links.send(gateway_id, TokenFrame(self.owner_epoch, failed=[failed]))

    def resend(self, entry: LedgerEntry, cursors: Mapping[int, Sequence[int]]) -> None:
        """Everything that a gateway which came back has not accepted yet."""
        frame = TokenFrame(self.owner_epoch)
        if entry.scheduled is not None:
            frame.scheduled.append(entry.scheduled)
        for choice, output in entry.outputs.items():
            begin = len(cursors.get(choice, ()))
            if begin < len(output.token_ids) or output.finish:
                frame.deltas.append(output.since(entry.request.request_id, choice, begin))
        if entry.failed is not None:
            frame.failed.append(entry.failed)
        if not frame.is_empty():
            self._links.send(entry.request.gateway_id, frame)

    def _mark_entries(self, outcome: StepOutcome, worker_id: str) -> None:
        for request_id, choice in outcome.preempted:
            if entry := self._ledger.get(request_id):
                entry.spans.row_came_back(choice, worker_id)
        for request_id in outcome.finished:
            if entry := self._ledger.get(request_id):
                entry.end()

    def _frame_for(self, frames: dict[str, TokenFrame], entry: LedgerEntry) -> TokenFrame:
        gateway_id = entry.request.gateway_id
        if gateway_id not in frames:
            frames[gateway_id] = TokenFrame(self.owner_epoch)
        return frames[gateway_id]


def _fail(entry: LedgerEntry, error: MillraceError) -> Failed:
    entry.failed = Failed(
        entry.request.request_id, status_number(error), error.reason, error.message
    )
    entry.end(error.reason)
    return entry.failed
