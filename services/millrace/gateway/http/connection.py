"""One HTTP connection, bounded: how many there are, how long a request may take to begin, how large
its head may be, how long a client may leave a reply untaken. What is refused here is refused in the
errors' shape, and the connection ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .sse import CUT_EXTENSION

# A reply that the client has not taken for so long is dropped, streamed or not, ended or not.
MAX_STALL_S = 60.0
# Path and headers of one request.
MAX_HEAD_BYTES = 32 << 10
RETRY_AFTER_S = 1


def _ignore(status: int, code: str, peer: tuple[str, int] | None) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`max_connections` are served at once. One too many is told so when it asks something.

    `head_timeout_s`: from the connection, or from the first byte of a later request, to the end of
    its headers; connections that are too many have `refusal_timeout_s` to ask. `on_refused` hears
    what was answered to whom.
    """

    max_connections: int = 4096
    head_timeout_s: float = 10.0
    refusal_timeout_s: float = 1.0
    on_refused: Callable[[int, str, tuple[str, int] | None], None] = _ignore

    @property
    def max_refused(self) -> int:
        """Connections whose request is awaited; those beyond are refused before they ask.

        A refusal that crosses its request may be lost on the way.
        """
        return max(8, self.max_connections // 8)


DEFAULT_LIMITS = ConnectionLimits()


def connection_class(limits: ConnectionLimits) -> type[Connection]:
    """What uvicorn makes one of per connection."""
    return type("LimitedConnection", (Connection,), {"limits": limits})


class _HeadTooLarge(Exception):
    """Seen by the parser only, which ends the connection then."""


class Connection(HttpToolsProtocol):
    """Made by `connection_class`."""

    limits = DEFAULT_LIMITS
    _is_refused = False
    _is_in_head = False
    _num_head_bytes = 0
    _num_unparsed_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        num_too_many = len(self.connections) - self.limits.max_connections
        self._is_refused = num_too_many > 0
        if num_too_many > self.limits.max_refused:
            self._refuse_connection()
            return
        timeout_s = self.limits.head_timeout_s
        self._arm_head_timer(self.limits.refusal_timeout_s if self._is_refused else timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm_head_timer()
        self._end_stall()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = self._num_unparsed_bytes = 0
        extensions: Any = {CUT_EXTENSION: self.transport.abort}
        self.scope["extensions"] = extensions
        if self._head_timer is None:
            self._arm_head_timer(self.limits.head_timeout_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(MAX_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._disarm_head_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._refuse_connection()
            return
        was_in_head = self._is_in_head
        super().data_received(data)
        # A header that never ends is not counted as one.
        if was_in_head and self._is_in_head and not self.transport.is_closing():
            self._num_unparsed_bytes += len(data)
            if self._num_unparsed_bytes > MAX_HEAD_BYTES:
                self._num_head_bytes = self._num_unparsed_bytes
                self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        kind = "invalid_request_error"
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                "431 Request Header Fields Too Large",
                kind,
                "request_header_fields_too_large",
                f"path and headers have more than {MAX_HEAD_BYTES} bytes, which is the limit",
            )
        else:
            self._refuse("400 Bad Request", kind, "bad_request", "this is not HTTP/1.1")

    def _refuse_connection(self) -> None:
        self._refuse(
            "503 Service Unavailable",
            "service_unavailable_error",
            "unavailable",
            f"this gateway has {self.limits.max_connections} connections, which is its limit",
        )

    def _refuse(self, status: str, kind: str, code: str, message: str) -> None:
        if self.transport.is_closing():
            return
        self.limits.on_refused(int(status[:3]), code, self.client)
        error = {"message": message, "type": kind, "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        retry = f"retry-after: {RETRY_AFTER_S}" if self._is_refused else "x-should-retry: false"
        self.transport.write(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{retry}\r\n"
            "connection: close\r\n\r\n".encode()
            + body
        )
        self.transport.close()

    def _end_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _arm_head_timer(self, timeout_s: float) -> None:
        self._head_timer = self.loop.call_later(timeout_s, self._on_head_timeout)

    def _disarm_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        self.transport.close()

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLarge
