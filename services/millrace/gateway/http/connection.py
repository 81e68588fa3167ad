"""One HTTP connection, bounded: how many there are, how long a request may take to begin and to
come, how large its head may be, how long a client may leave a reply untaken.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from .body_clock import BodyClock
from .connection_limits import DEFAULT_LIMITS, ConnectionLimits
from .protocol import Stage, StrictProtocol
from .refusal_log import RefusalLog

# A reply that the client has not taken for so long is dropped, streamed or not, ended or not.
MAX_STALL_S = 60.0
# Path and headers of one request.
MAX_HEAD_BYTES = 32 << 10
RETRY_AFTER_S = 1


def connection_class(limits: ConnectionLimits) -> type[Connection]:
    """What uvicorn makes one of per connection."""
    return type("LimitedConnection", (Connection,), {"limits": limits, "log": RefusalLog()})


class Connection(StrictProtocol):
    """Made by `connection_class`."""

    limits = DEFAULT_LIMITS
    log = RefusalLog()
    _is_surplus = False
    # Of a head, as the parser tells them; and as they came, since it tells only whole headers.
    _num_head_bytes = 0
    _num_unparsed_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _body_clock: BodyClock | None = None
    _body_timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        num_too_many = len(self.connections) - self.limits.max_connections
        self._is_surplus = num_too_many > 0
        if num_too_many > self.limits.max_refused:
            self._turn_away()
            return
        timeout_s = self.limits.head_timeout_s
        self._arm_head_timer(self.limits.refusal_timeout_s if self._is_surplus else timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm_timers()
        self._end_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_surplus and not self._is_last:
            self._is_last = self._has_body_behind = True
            self._disarm_timers()
            self._turn_away()
        self._num_unparsed_bytes += len(data)
        super().data_received(data)
        if self._is_last or self.transport.is_closing():
            return
        if self._stage is Stage.BODY:
            self._time_body(len(data))
        elif self._num_unparsed_bytes > MAX_HEAD_BYTES:
            self.refuse(_head_too_large())
        elif self._num_unparsed_bytes and self._head_timer is None:
            # Empty lines before a request.
            self._arm_head_timer(self.limits.head_timeout_s)

    def refuse(self, error: HTTPException) -> None:
        if not self._is_last:
            self._disarm_timers()
            self.log.note(self.client, error)
        super().refuse(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(MAX_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_head_bytes = self._num_unparsed_bytes = 0
        if self._head_timer is None:
            self._arm_head_timer(self.limits.head_timeout_s)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage is Stage.HEAD:
            self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm_timers()
        self._num_unparsed_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm_timers()
        self._num_unparsed_bytes = 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, app)
        if self._body_clock is not None:
            self._body_clock.restart(self.loop.time())

    def _turn_away(self) -> None:
        if self.transport.is_closing():
            return
        self.limits.on_turned_away(self.client)
        message = f"this gateway has {self.limits.max_connections} connections, which is its limit"
        kind, code = "service_unavailable_error", "unavailable"
        error = {"message": message, "type": kind, "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        self.transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nretry-after: %d\r\nconnection: close\r\n\r\n%s"
            % (len(body), RETRY_AFTER_S, body)
        )
        self.transport.close()

    def _end_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _arm_head_timer(self, timeout_s: float) -> None:
        self._head_timer = self.loop.call_later(timeout_s, self._on_head_timeout)

    def _disarm_timers(self) -> None:
        for timer in (self._head_timer, self._body_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._body_timer = self._body_clock = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self._stage is Stage.HEAD:
            limit_s = self.limits.head_timeout_s
            self.refuse(HTTPException(408, f"path and headers took over {limit_s:g} s"))
        elif next(self._open_exchanges(), None) is None:
            self.transport.close()

    def _time_body(self, num_bytes: int) -> None:
        now_s = self.loop.time()
        if self._body_clock is None:
            limits = self.limits
            self._body_clock = BodyClock(limits.body_timeout_s, limits.min_body_rate, now_s)
            self._body_timer = self.loop.call_at(self._body_clock.deadline_s, self._check_body)
        self._body_clock.on_bytes(num_bytes, now_s)

    def _check_body(self) -> None:
        clock, now_s = self._body_clock, self.loop.time()
        if clock is None or self.transport.is_closing():
            return
        is_queued = self.cycle is not self._running
        if is_queued or self.flow.read_paused or self.transport.resumed_s > clock.started_s:
            # It was we who did not read, or did not ask for it.
            clock.restart(now_s)
        elif clock.deadline_s <= now_s:
            self.refuse(
                HTTPException(
                    408,
                    f"the body came too slowly: it may stand still for "
                    f"{self.limits.body_timeout_s:g} s, and then needs "
                    f"{self.limits.min_body_rate:g} bytes/s",
                )
            )
            return
        self._body_timer = self.loop.call_at(clock.deadline_s, self._check_body)

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refusal = _head_too_large()
            raise self._refusal


def _head_too_large() -> HTTPException:
    return HTTPException(
        431, f"path and headers have more than {MAX_HEAD_BYTES} bytes, which is the limit"
    )
