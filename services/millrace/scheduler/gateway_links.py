"""Token frames on their way to the gateways: bounded buffers that the step loop never waits for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Set

from millrace.core.errors import Overloaded, Unavailable
from millrace.core.membership import ResumeQuery, SchedulerStatus
from millrace.core.tokens import TokenFrame

LinkEvent = TokenFrame | ResumeQuery | SchedulerStatus

MAX_BUFFERED_BYTES = 4 << 20
MAX_BUFFERED_S = 2.0
# A delta's columns and a token, roughly, as they lie in a frame.
DELTA_BYTES = 32
TOKEN_BYTES = 4


class GatewayLink:
    """One gateway's open Attach stream.

    `wanted` are the requests that the gateway has named on it and not taken back: a client waits
    for them. `doubtful` are those it had not named at the last look, `asked` those that it has been
    asked about.
    """

    def __init__(self, gateway_id: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.gateway_id = gateway_id
        self._clock_s = clock_s
        self._events: deque[tuple[float, int, LinkEvent]] = deque()
        self._num_bytes = 0
        self._wake = asyncio.Event()
        self._is_closed = False
        self.is_overflowed = False
        self.wanted: set[str] = set()
        self.doubtful: set[str] = set()
        self.asked: set[str] = set()

    def want(self, request_id: str) -> None:
        """A client waits for that request."""
        self.wanted.add(request_id)

    def forget(self, request_id: str) -> None:
        """Nobody waits for it any more."""
        self.wanted.discard(request_id)
        self.asked.discard(request_id)

    def push(self, event: LinkEvent) -> None:
        """Queues an event; on overflow the stream ends, and the gateway attaches again."""
        if self._is_closed or self.is_overflowed:
            return
        num_bytes = _size_of(event)
        is_late = bool(self._events) and self._clock_s() - self._events[0][0] > MAX_BUFFERED_S
        if is_late or self._num_bytes + num_bytes > MAX_BUFFERED_BYTES:
            self.is_overflowed = True
        else:
            self._events.append((self._clock_s(), num_bytes, event))
            self._num_bytes += num_bytes
        self._wake.set()

    def close(self) -> None:
        """Ends `events`."""
        self._is_closed = True
        self._wake.set()

    async def events(self) -> AsyncIterator[LinkEvent]:
        """What to send, in order. Raises `Overloaded` where the gateway reads too slowly."""
        while not self._is_closed:
            if self.is_overflowed:
                raise Overloaded(
                    f"the gateway left {self._num_bytes} bytes unread for up to {MAX_BUFFERED_S} s"
                )
            if not self._events:
                self._wake.clear()
                await self._wake.wait()
                continue
            _, num_bytes, event = self._events.popleft()
            self._num_bytes -= num_bytes
            yield event


class GatewayLinks:
    """Every gateway that is attached, and since when the others are not."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._links: dict[str, GatewayLink] = {}
        self._absent_since_s: dict[str, float] = {}
        self._is_closed = False

    def attach(self, gateway_id: str) -> GatewayLink:
        """A new stream; an older one of the same gateway ends. `Unavailable` after `close`."""
        if self._is_closed:
            raise Unavailable("this scheduler is ending", retry_after_s=1.0)
        if older := self._links.get(gateway_id):
            older.close()
        link = GatewayLink(gateway_id, self._clock_s)
        self._links[gateway_id] = link
        self._absent_since_s.pop(gateway_id, None)
        return link

    def detach(self, link: GatewayLink) -> None:
        """The stream has ended."""
        link.close()
        if self._links.get(link.gateway_id) is link:
            del self._links[link.gateway_id]
            self._absent_since_s[link.gateway_id] = self._clock_s()

    def send(self, gateway_id: str, event: LinkEvent) -> bool:
        """False where that gateway is not attached."""
        link = self._links.get(gateway_id)
        if link is None:
            self._absent_since_s.setdefault(gateway_id, self._clock_s())
            return False
        link.push(event)
        if link.is_overflowed:
            # Absent from now on: its stream ends only when it reads again.
            del self._links[gateway_id]
            self._absent_since_s[gateway_id] = self._clock_s()
            return False
        return True

    def is_wanted(self, gateway_id: str, request_id: str) -> bool:
        """False where that gateway is not attached, or has not named the request."""
        link = self._links.get(gateway_id)
        return link is not None and request_id in link.wanted

    def ask(self, gateway_id: str, request_ids: Iterable[str]) -> None:
        """Asks, once per stream, about requests that the gateway has not named on it.

        Only at the second call with them: its word on a new request may be on its way still, and
        the answer to a needless question makes frames go out twice.
        """
        if (link := self._links.get(gateway_id)) is None:
            return
        known = link.wanted | link.asked
        unknown = {each for each in request_ids if each not in known}
        overdue = sorted(unknown & link.doubtful)
        link.doubtful = unknown
        if overdue:
            link.asked.update(overdue)
            self.send(gateway_id, ResumeQuery(tuple(overdue)))

    def broadcast(self, event: LinkEvent) -> None:
        """To every attached gateway."""
        for gateway_id in list(self._links):
            self.send(gateway_id, event)

    def absent_for_s(self, gateway_id: str) -> float:
        """How long a gateway has been away; 0 while it is attached."""
        if gateway_id in self._links:
            return 0.0
        since_s = self._absent_since_s.setdefault(gateway_id, self._clock_s())
        return self._clock_s() - since_s

    def forget_all_but(self, gateway_ids: Set[str]) -> None:
        """An absent gateway without requests needs no clock any more."""
        for gateway_id in self._absent_since_s.keys() - gateway_ids:
            del self._absent_since_s[gateway_id]

    def close(self) -> None:
        """Ends every stream; nobody can attach any more."""
        self._is_closed = True
        for link in list(self._links.values()):
            link.close()


def _size_of(event: LinkEvent) -> int:
    if not isinstance(event, TokenFrame):
        return DELTA_BYTES
    num_tokens = sum(len(delta.token_ids) for delta in event.deltas)
    num_entries = len(event.deltas) + len(event.scheduled) + len(event.failed)
    return DELTA_BYTES * num_entries + TOKEN_BYTES * num_tokens
