"""A gateway without clients, and what it asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from millrace.bus.base import Bus
from millrace.core.errors import MillraceError
from millrace.core.membership import ResumeQuery, SchedulerStatus
from millrace.core.request import Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.core.tokens import Failed, FinishReason, TokenFrame, TokenLogprobs
from millrace.rpc.client import open_channel
from millrace.testing.gaps import waits_s
from millrace.wire.scheduler_client import AttachStream

MODEL = "model-worker"
WAIT_S = 10.0


@dataclass
class Answer:
    """What a gateway has of one request."""

    request: QueuedRequest
    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    finishes: dict[int, FinishReason] = field(default_factory=dict)
    failed: Failed | None = None
    is_scheduled: bool = False
    sent_s: float = field(default_factory=time.monotonic)
    token_times_s: list[float] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.failed is not None or len(self.finishes) == self.request.num_choices

    @property
    def waits_s(self) -> list[float]:
        """How long its client waited for the first token, then for each after it."""
        return waits_s(self.sent_s, self.token_times_s)


class ScriptedGateway:
    """Accepts frames as a gateway does: by start index, nothing twice, no gap."""

    def __init__(self, address: str, gateway_id: str = "gateway") -> None:
        self.gateway_id = gateway_id
        self.answers: dict[str, Answer] = {}
        self.gone: set[str] = set()
        self.confirms = True
        self.frames: list[TokenFrame] = []
        self.statuses: list[SchedulerStatus] = []
        self.error: MillraceError | None = None
        self._address = address
        self._changed = asyncio.Event()

    async def attach(self) -> None:
        """Opens a stream and resumes what is open, as after a loss."""
        self.error = None
        self._channel = open_channel(self._address)
        self.stream = await AttachStream.open(self._channel, self.gateway_id)
        for answer in self.answers.values():
            if not answer.is_over:
                await self.stream.resume(answer.request.request_id, answer.tokens)
        self._reader = asyncio.create_task(self._read())

    async def detach(self) -> None:
        """Breaks the stream."""
        await self.stream.close()
        await self._reader
        await self._channel.close()

    async def send(self, bus: Bus, request: QueuedRequest) -> Answer:
        answer = self.answers[request.request_id] = Answer(request)
        await self.stream.register(request.request_id)
        await bus.publish_request(request, {"traceparent": request.traceparent})
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that arrives by the stream."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_over(self) -> None:
        await self.until(lambda: all(answer.is_over for answer in self.answers.values()))

    async def _read(self) -> None:
        try:
            async for event in self.stream.events():
                if isinstance(event, TokenFrame):
                    await self._take(event)
                elif isinstance(event, ResumeQuery):
                    await self._answer(event)
                else:
                    self.statuses.append(event)
                self._changed.set()
        except MillraceError as error:
            self.error = error
        finally:
            self._changed.set()

    async def _answer(self, query: ResumeQuery) -> None:
        for request_id in query.request_ids:
            answer = self.answers.get(request_id)
            if answer is None or request_id in self.gone:
                await self.stream.gone(request_id)
            else:
                await self.stream.resume(request_id, answer.tokens)

    async def _take(self, frame: TokenFrame) -> None:
        self.frames.append(frame)
        for scheduled in frame.scheduled:
            self.answers[scheduled.request_id].is_scheduled = True
        for delta in frame.deltas:
            answer = self.answers[delta.request_id]
            tokens = answer.tokens.setdefault(delta.choice, [])
            num_known = len(tokens) - delta.start_index
            if num_known < 0:
                # A gap: frames of before the resume was heard.
                continue
            tokens += delta.token_ids[num_known:]
            answer.token_times_s += [time.monotonic()] * len(delta.token_ids[num_known:])
            answer.logprobs.setdefault(delta.choice, []).extend(delta.logprobs[num_known:])
            if delta.finish:
                answer.finishes[delta.choice] = delta.finish
            await self._confirm(answer)
        for failed in frame.failed:
            answer = self.answers[failed.request_id]
            answer.failed = failed
            await self._confirm(answer)

    async def _confirm(self, answer: Answer) -> None:
        if answer.is_over and self.confirms:
            await self.stream.done(answer.request.request_id)


def queued_request(
    number: int = 1,
    *,
    prompt: list[int] | None = None,
    max_tokens: int = 24,
    num_choices: int = 1,
    gateway_id: str = "gateway",
    deadline_unix_ms: int = 0,
    traceparent: str = "",
    top_logprobs: int | None = None,
) -> QueuedRequest:
    return QueuedRequest(
        request_id=f"{number:032x}",
        gateway_id=gateway_id,
        model=MODEL,
        prompt_token_ids=prompt or [number % 90 + 1, *range(1, 12 + number % 23)],
        sampling=SamplingSpec(temperature=1.0, seed=number, top_logprobs=top_logprobs),
        stop_token_ids=(),
        max_tokens=max_tokens,
        num_choices=num_choices,
        priority=Priority(number % 3 + 1),
        deadline_unix_ms=deadline_unix_ms,
        arrival_unix_ns=number,
        traceparent=traceparent,
    )
