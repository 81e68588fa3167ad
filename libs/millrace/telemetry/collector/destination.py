"""Where the collector sends spans on to: a tracing UI beside it, and an OTLP backend elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import zlib
from collections.abc import Callable
from typing import Protocol

from millrace.core.url import HttpUrl
from millrace.telemetry.exporter import open_session
from millrace.telemetry.otlp_settings import ExportSettings

CONTENT_TYPE = "application/x-protobuf"
OTLP_TIMEOUT_S = 10.0


class Destination(Protocol):
    """Takes OTLP/HTTP export requests. `name` and `loss_level` are for the log."""

    name: str
    loss_level: int

    def is_there(self) -> bool:
        """False while there is nothing to send to; may be asked from any thread."""
        ...

    async def post(self, body: bytes) -> int:
        """Sends one request; the HTTP status. Raises OSError or ValueError."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


class UiDestination:
    """The tracing UI at the URL that `find` names, on a connection of its own for each request."""

    name = "the tracing UI"
    loss_level = logging.INFO

    def __init__(self, find: Callable[[], HttpUrl | None]) -> None:
        self._find = find
        self._url: HttpUrl | None = None

    def is_there(self) -> bool:
        """Looks anew."""
        self._url = self._find()
        return self._url is not None

    async def post(self, body: bytes) -> int:
        """See `Destination`."""
        url = self._url
        if url is None:
            raise ConnectionError("no tracing UI runs")
        reader, writer = await asyncio.open_connection(url.host, url.port or 80)
        try:
            head = (
                f"POST {url.path.rstrip('/')}/v1/traces HTTP/1.1\r\n"
                f"Host: {url.address}\r\n"
                f"Content-Type: {CONTENT_TYPE}\r\n"
                f"Content-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n"
            )
            writer.write(head.encode("latin-1") + body)
            await writer.drain()
            status_line = await reader.readuntil(b"\r\n")
            return int(status_line.split(b" ", 2)[1])
        except (IndexError, asyncio.LimitOverrunError):
            raise ValueError("the answer is not HTTP") from None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def close(self) -> None:
        """Holds nothing."""


class OtlpDestination:
    """The backend of the user's OTEL_EXPORTER_OTLP_* variables, by the same client as exporters."""

    loss_level = logging.WARNING

    def __init__(self, settings: ExportSettings) -> None:
        self.name = f"the OTLP endpoint {settings.shown}"
        self._settings = settings
        self._session = open_session(settings)

    def is_there(self) -> bool:
        """Always: it was named."""
        return True

    async def post(self, body: bytes) -> int:
        """See `Destination`."""
        return await asyncio.to_thread(self._post, body)

    def close(self) -> None:
        """Ends the connections."""
        self._session.close()

    def _post(self, body: bytes) -> int:
        settings = self._settings
        certificate, key = settings.client_certificate, settings.client_key
        response = self._session.post(
            settings.endpoint.without_credentials(),
            data=_packed(body, settings.compression),
            headers=self._head(),
            timeout=settings.timeout_s or OTLP_TIMEOUT_S,
            allow_redirects=False,
            verify=settings.certificate or True,
            cert=((certificate, key) if key else certificate) or None,
        )
        return response.status_code

    def _head(self) -> dict[str, str]:
        head = {"content-type": CONTENT_TYPE, **self._settings.headers}
        if self._settings.compression != "none":
            head["content-encoding"] = self._settings.compression
        return head


def _packed(body: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(body)
    return zlib.compress(body) if compression == "deflate" else body
