"""One request and its reply on a connection, as uvicorn plays it for an ASGI app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent


class Exchange(RequestResponseCycle):
    """A reply in HTTP/1.1. The app that reads a body which fails gets the error raised."""

    _body_error: HTTPException | None = None

    def fail_body(self, error: HTTPException) -> None:
        """The rest of the body will not come."""
        self._body_error = error
        self.message_event.set()

    def disconnect(self) -> None:
        """The client is gone."""
        self.disconnected = True
        self.message_event.set()

    async def receive(self) -> ASGIReceiveEvent:
        """ASGI."""
        event = await super().receive()
        if self._body_error is not None and event["type"] == "http.request":
            raise self._body_error
        return event


class UnchunkedExchange(Exchange):
    """A reply in HTTP/1.0: one without a length ends with the connection (RFC 9112 6.1, 6.3)."""

    _is_open_ended = False

    async def send(self, message: ASGISendEvent) -> None:
        """ASGI."""
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            if b"content-length" not in names:
                self._is_open_ended = True
                self.chunked_encoding = False
        elif self._is_open_ended and message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
