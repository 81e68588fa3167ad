"""HTTP/1.1 on one connection: uvicorn's protocol over llhttp, as strict as RFC 9112 asks.

See docs/adr/0001-http-framing.md.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import unquote

import httptools
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from . import extensions
from .client_transport import ClientTransport
from .exchange import Exchange, UnchunkedExchange
from .framing import Framing, check_head, head_without_upgrade, syntax_error

# After the last reply: of a body, whose sender may look for the reply only at its end; and of
# anything else.
MAX_DRAINED_BODY_BYTES = 64 << 20
MAX_DRAINED_BYTES = 1 << 20
# Bytes of chunk sizes, chunk extensions and trailers: so many, and so many per byte of the body.
MAX_OVERHEAD_BYTES = 64 << 10
MAX_OVERHEAD_RATE = 8


class Stage(enum.Enum):
    """What of a request is being read."""

    BETWEEN = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class StrictProtocol(HttpToolsProtocol):
    """Answers every request once and in order. A request that cannot be framed is the last one.

    A client that ends its side gets the replies to what it asked.
    """

    transport: Any

    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast(Any, ClientTransport(transport, self._num_drained)))
        self._client_end = asyncio.Event()
        self._stage = Stage.BETWEEN
        self._is_last = False
        self._may_keep_alive = True
        # Behind a head that was refused.
        self._has_body_behind = False
        self._running: Exchange | None = None
        self._refusal: HTTPException | None = None
        self._num_body_bytes = self._num_wire_bytes = 0
        # check_head refuses versions, with a status of its own.
        self.parser.set_dangerous_leniencies(lenient_version=True)

    def connection_lost(self, exc: Exception | None) -> None:
        for exchange in self._open_exchanges():
            exchange.disconnect()
        self.transport.forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_last or self.transport.is_closing():
            self.transport.drop(len(data))
            return
        self._unset_keepalive_if_required()
        was_in_body = self._stage is Stage.BODY
        try:
            self._feed(memoryview(data))
        except httptools.HttpParserCallbackError:
            if self._refusal is None:
                raise
            self.refuse(self._refusal)
        except httptools.HttpParserError as exc:
            self.refuse(syntax_error(exc, data))
        else:
            if was_in_body and self._stage is Stage.BODY:
                self._check_overhead(len(data))

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; True: what it asked for is still written."""
        self._client_end.set()
        if self.transport.is_closing():
            self.transport.close()
        elif self._stage is not Stage.BETWEEN:
            self.refuse(HTTPException(400, "the request ended before its end"))
        elif next(self._open_exchanges(), None) is None:
            self.transport.close()
        else:
            self.cycle.keep_alive = self._may_keep_alive = False
        return True

    def shutdown(self) -> None:
        self._may_keep_alive = False
        super().shutdown()

    def refuse(self, error: HTTPException) -> None:
        """Answers what is being read with `error`, behind earlier replies; reads no more."""
        if self._is_last:
            return
        self._is_last = True
        if self._stage is Stage.BODY:
            cast(Exchange, self.cycle).fail_body(error)
            return
        if self._stage is Stage.BETWEEN:
            self.on_message_begin()
        cast(Any, self.scope)["extensions"][extensions.REFUSAL] = error
        self._begin(Exchange)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stage = Stage.HEAD
        told = {
            extensions.CUT: self.transport.abort,
            extensions.CLIENT_END: self._client_end,
        }
        # Until they are known: a head that is refused may have none.
        unknown = {"method": "", "path": "", "raw_path": b"", "query_string": b""}
        cast(Any, self.scope).update(extensions=told, **unknown)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        # Now, since a reply to HEAD has no body even if the rest of the head is refused.
        self.scope["method"] = self.parser.get_method().decode("ascii")

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are none of the app's business (RFC 9110 6.5.1).
        if self._stage is Stage.HEAD:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        self.scope["http_version"] = version
        framing = self._checked(version)
        if self.parser.should_upgrade():
            return  # It is read again, see _feed.
        self._set_target(framing)
        self.expect_100_continue = framing.expects_continue
        self._stage = Stage.BODY
        self._num_body_bytes = self._num_wire_bytes = 0
        self._begin(UnchunkedExchange if version == "1.0" else Exchange)

    def on_body(self, body: bytes) -> None:
        self._num_body_bytes += len(body)
        # It has not waited.
        self.cycle.waiting_for_100_continue = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._stage = Stage.BETWEEN
        # Before that a reply says `connection: close`: it does not wait for the rest of the body.
        if not self.cycle.response_started:
            is_kept = self._may_keep_alive and self.scope["http_version"] == "1.1"
            self.cycle.keep_alive = is_kept and self.parser.should_keep_alive()
        super().on_message_complete()

    def _feed(self, data: memoryview) -> None:
        """RFC 9110 7.8: a server may ignore Upgrade. The parser cannot: it takes what follows for
        another protocol. So another parser reads that head without it, and what follows.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                head = head_without_upgrade(
                    self.parser.get_method(),
                    self.parser.get_http_version(),
                    self.url,
                    self.headers,
                )
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)

    def _checked(self, version: str) -> Framing:
        try:
            return check_head(self.scope["method"], version, self.url, self.headers)
        except HTTPException as error:
            self._refusal = error
            self._has_body_behind = True
            raise

    def _set_target(self, framing: Framing) -> None:
        raw_path, _, query = framing.target.partition(b"?")
        self.scope["path"] = unquote(raw_path.decode("ascii"))
        self.scope["raw_path"] = raw_path
        self.scope["query_string"] = query
        if framing.host is not None:
            others = [each for each in self.headers if each[0] != b"host"]
            self.headers[:] = [(b"host", framing.host), *others]

    def _begin(self, kind: type[Exchange]) -> None:
        """Starts the app on the request, or queues it behind the one that is being answered."""
        previous = self.cycle
        self.cycle = exchange = kind(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        if previous is None or previous.response_complete:
            self._start_asgi_task(exchange, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cast(Exchange, cycle)
        super()._start_asgi_task(cycle, app)

    def _open_exchanges(self) -> Iterator[Exchange]:
        """Those without their whole reply."""
        if self._running is not None and not self._running.response_complete:
            yield self._running
        for queued, _ in self.pipeline:
            yield cast(Exchange, queued)

    def _num_drained(self) -> int:
        """How much of what the client may be sending, after the last reply, to take from it."""
        if self._client_end.is_set():
            return 0
        if self._has_body_behind or self._stage is Stage.BODY:
            return MAX_DRAINED_BODY_BYTES
        has_said_close = self._running is not None and not self._running.keep_alive
        return MAX_DRAINED_BYTES if self._is_last or has_said_close else 0

    def _check_overhead(self, num_bytes: int) -> None:
        self._num_wire_bytes += num_bytes
        most = MAX_OVERHEAD_BYTES + (MAX_OVERHEAD_RATE + 1) * self._num_body_bytes
        if self._num_wire_bytes > most:
            message = f"the chunks of {self._num_body_bytes} bytes of body take over {most} bytes"
            self.refuse(HTTPException(400, message))
