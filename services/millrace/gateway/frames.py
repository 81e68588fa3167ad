"""From frames to requests: every live request of this gateway, and the streams they hang on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from millrace.core.cancellation import CancelReason
from millrace.core.errors import Aborted, InternalError, MillraceError
from millrace.core.membership import ResumeQuery, SchedulerOwner, SchedulerStatus
from millrace.core.tokens import Failed, FinishReason, Scheduled, TokenDelta, TokenFrame
from millrace.wire.status import error_from_reason

from .choice_output import Acceptance, ChoiceOutput
from .detokenizer import Detokenizer
from .directory import ModelDirectory
from .live_request import LiveRequest
from .ports import OpenStream, Tokenizer
from .scheduler_link import AttachEvent, Notice, SchedulerLink

_log = logging.getLogger(__name__)

# A request that has lost so many deltas to a gap is given up: asking again did not help.
MAX_GAPS = 1000
MAX_STRAYS = 4096


class _ModelSide:
    """What belongs to one model: its stream, its detokenizer, its live requests."""

    def __init__(self, link: SchedulerLink, detokenizer: Detokenizer) -> None:
        self.link = link
        self.detokenizer = detokenizer
        self.live: dict[str, LiveRequest] = {}
        self.attempt = 0
        self.strays: set[str] = set()
        self.tasks = (asyncio.create_task(link.run()), asyncio.create_task(detokenizer.run()))


class FrameRouter:
    """Hands each delta to its request and tells schedulers how requests ended.

    `publish_abort` is the way to a scheduler whose stream is down. `on_stale` counts deltas
    dropped as stale or double.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        tokenizer: Tokenizer,
        directory: ModelDirectory,
        publish_abort: Callable[[str], Awaitable[None]],
        on_stale: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._open_stream = open_stream
        self._tokenizer = tokenizer
        self._directory = directory
        self._publish_abort = publish_abort
        self._on_stale = on_stale
        self._sides: dict[str, _ModelSide] = {}
        self._errands: set[asyncio.Task[None]] = set()

    @property
    def num_live(self) -> int:
        """Requests not yet ended."""
        return sum(len(side.live) for side in self._sides.values())

    def num_live_of(self, model: str) -> int:
        """Requests of one model not yet ended."""
        side = self._sides.get(model)
        return len(side.live) if side else 0

    def find(self, request_id: str) -> LiveRequest | None:
        """The live request of that id."""
        for side in self._sides.values():
            if live := side.live.get(request_id):
                return live
        return None

    def on_owner(self, owner: SchedulerOwner | None) -> None:
        """A model has an active scheduler, or another one."""
        if owner is not None:
            self._side(owner.model).link.point_at(owner)

    async def register(self, live: LiveRequest) -> None:
        """Makes a request known, here and to its scheduler. Raises `Unavailable`."""
        side = self._side(live.model)
        side.live[live.request_id] = live
        live.on_cut = partial(self.settle, live, CancelReason.SLOW_CLIENT)
        try:
            await side.link.register(live.request_id)
            live.is_registered = True
        except BaseException:
            side.live.pop(live.request_id, None)
            raise

    def settle(self, live: LiveRequest, reason: CancelReason | None) -> None:
        """The request is over here; safe to repeat.

        `reason` None: the scheduler ended it and is told that this arrived. Else it is told to
        end it.
        """
        side = self._sides[live.model]
        if side.live.pop(live.request_id, None) is None:
            return
        if reason is None:
            side.link.tell(Notice("done", None, live.request_id))
            return
        if live.on_cancelled is not None:
            live.on_cancelled(reason)
        side.strays.add(live.request_id)
        if not side.link.tell(Notice("abort", None, live.request_id, reason)):
            self._run_errand(self._publish_abort(live.request_id))

    def end_all(self, error: MillraceError) -> int:
        """Every live request ends with `error`, here and at its scheduler; how many these were."""
        ended = [live for side in self._sides.values() for live in side.live.values()]
        for live in ended:
            live.fail(error)
            self.settle(live, CancelReason.SHUTDOWN)
        return len(ended)

    async def close(self) -> None:
        """Ends every stream."""
        tasks = [task for side in self._sides.values() for task in side.tasks]
        tasks += list(self._errands)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _side(self, model: str) -> _ModelSide:
        side = self._sides.get(model)
        if side is None:
            link = SchedulerLink(
                model,
                self._open_stream,
                lambda: list(self._sides[model].live.values()),
                lambda event: self._on_event(model, event),
                lambda: self._on_detached(model),
            )
            detokenizer = Detokenizer(model, self._tokenizer, self._on_ended, self._on_failed)
            side = self._sides[model] = _ModelSide(link, detokenizer)
        return side

    def _on_event(self, model: str, event: AttachEvent) -> None:
        side = self._sides[model]
        if isinstance(event, TokenFrame):
            self._on_frame(side, event)
        elif isinstance(event, ResumeQuery):
            for request_id in event.request_ids:
                live = side.live.get(request_id)
                side.link.tell(Notice("resume" if live else "gone", live, request_id))
        elif isinstance(event, SchedulerStatus):
            side.attempt = max(side.attempt, event.owner_epoch)
            self._directory.on_status(event)

    def _on_detached(self, model: str) -> None:
        self._sides[model].strays.clear()
        self._directory.on_detached(model)

    def _on_frame(self, side: _ModelSide, frame: TokenFrame) -> None:
        if frame.attempt < side.attempt:
            self._on_stale(len(frame.deltas))
            return
        side.attempt = frame.attempt
        for scheduled in frame.scheduled:
            self._on_scheduled(side, scheduled)
        for delta in frame.deltas:
            self._on_delta(side, delta)
        for failed in frame.failed:
            self._on_failure(side, failed)

    def _on_scheduled(self, side: _ModelSide, scheduled: Scheduled) -> None:
        live = side.live.get(scheduled.request_id)
        if live is not None and not live.scheduled_unix_ns:
            live.scheduled_unix_ns = scheduled.scheduled_unix_ns
            live.num_cached_tokens = scheduled.num_cached_tokens

    def _on_delta(self, side: _ModelSide, delta: TokenDelta) -> None:
        live = side.live.get(delta.request_id)
        if live is None or delta.choice >= len(live.choices):
            self._on_stray(side, delta)
            return
        if not all(entry.is_defined for entry in delta.logprobs):
            self._on_failed(live, InternalError("the model's output is not finite"))
            return
        choice = live.choices[delta.choice]
        outcome = choice.accept(delta)
        if outcome is Acceptance.STALE:
            self._on_stale(1)
        elif outcome is Acceptance.GAP:
            self._on_gap(side, live, choice)
        elif choice.finish is FinishReason.ERROR:
            self._on_failed(live, InternalError("the request failed while it ran"))
        else:
            side.detokenizer.add(live, choice)

    def _on_gap(self, side: _ModelSide, live: LiveRequest, choice: ChoiceOutput) -> None:
        """Asks for everything from here on, once per place; what comes meanwhile is dropped."""
        live.num_gaps += 1
        place = (choice.index, len(choice.token_ids))
        if live.num_gaps > MAX_GAPS:
            self._on_failed(live, InternalError("tokens were lost on the way"))
        elif live.gap_at != place:
            _log.warning(
                "tokens were lost on the way from the scheduler; asking for them again",
                extra={"request_id": live.request_id},
            )
            live.gap_at = place
            side.link.tell(Notice("resume", live, live.request_id))

    def _on_stray(self, side: _ModelSide, delta: TokenDelta) -> None:
        """A request that is over here, or was never known: let the scheduler forget it."""
        if delta.finish is not FinishReason.NONE:
            side.strays.discard(delta.request_id)
            side.link.tell(Notice("done", None, delta.request_id))
        elif delta.request_id not in side.strays:
            if len(side.strays) >= MAX_STRAYS:
                side.strays.clear()
            side.strays.add(delta.request_id)
            side.link.tell(Notice("abort", None, delta.request_id, CancelReason.CLIENT))

    def _on_failure(self, side: _ModelSide, failed: Failed) -> None:
        live = side.live.get(failed.request_id)
        if live is None:
            side.link.tell(Notice("done", None, failed.request_id))
            return
        if failed.reason == Aborted.reason:
            # By id, at another gateway: the client is told as by an abort here.
            live.abort()
            if live.on_cancelled is not None:
                live.on_cancelled(CancelReason.ABORT)
        else:
            live.fail(error_from_reason(failed.reason, failed.message))
        self.settle(live, None)

    def _on_ended(self, live: LiveRequest) -> None:
        self.settle(live, None if live.is_settled else CancelReason.STOP_STRING)

    def _on_failed(self, live: LiveRequest, error: MillraceError) -> None:
        live.fail(error)
        self.settle(live, CancelReason.ERROR)

    def _run_errand(self, errand: Awaitable[None]) -> None:
        task = asyncio.create_task(_quietly(errand))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


async def _quietly(errand: Awaitable[None]) -> None:
    try:
        await errand
    except MillraceError as error:
        _log.info("the schedulers could not be told of an abort: %s", error)
