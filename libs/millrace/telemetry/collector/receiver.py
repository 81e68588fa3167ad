"""Answers OTLP/HTTP export requests: decode, keep, forward."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

from millrace.telemetry.http_server import HttpRequest, HttpResponse
from millrace.telemetry.otlp import parse_request, records_of
from millrace.telemetry.trace_writer import TraceWriter

from .forwarder import Forwarder
from .ui_body import fit_for_ui

PROTOBUF = "application/x-protobuf"
# Export requests decoded or waiting for it; beyond that exporters are told to come again.
MAX_PENDING = 32
WARNING_INTERVAL_S = 60.0

_logger = logging.getLogger(__name__)


class Receiver:
    """The HTTP handler. Decoding and SQLite run in one thread, in order of arrival.

    `ui` gets what it can show, `otlp` everything as it came.
    """

    def __init__(
        self,
        writer: TraceWriter,
        ui: Forwarder,
        otlp: Forwarder | None = None,
        *,
        max_body_bytes: int,
    ) -> None:
        self._writer = writer
        self._ui = ui
        self._otlp = otlp
        self._max_body_bytes = max_body_bytes
        self._thread = ThreadPoolExecutor(1, "spans")
        self._num_pending = 0
        self._warned_at = -WARNING_INTERVAL_S
        self.num_spans = 0

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """`POST /v1/traces` and `GET /health`; never raises."""
        path = request.path.partition("?")[0]
        if path == "/health" and request.method in ("GET", "HEAD"):
            return HttpResponse(200, b"ok\n")
        if path != "/v1/traces":
            return HttpResponse(404, b"only /v1/traces and /health are here\n")
        if request.method != "POST":
            return HttpResponse(405, b"only POST is allowed\n")
        # A web page can send this type only after asking first, and nobody answers that here.
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != PROTOBUF:
            return HttpResponse(415, f"the content type must be {PROTOBUF}\n".encode())
        if self._num_pending >= MAX_PENDING:
            return HttpResponse(503, b"busy\n")
        return await self._export(request)

    async def close(self) -> None:
        """Finish what was accepted."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        self._writer.close()

    async def _export(self, request: HttpRequest) -> HttpResponse:
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity", "gzip"):
            return HttpResponse(415, b"the content encoding must be gzip or none\n")
        self._num_pending += 1
        try:
            loop = asyncio.get_running_loop()
            body, shown = await loop.run_in_executor(
                self._thread, self._keep, request.body, encoding == "gzip"
            )
        except ValueError as error:
            return HttpResponse(400, f"{error}\n".encode())
        except Exception as error:  # a full disk, a locked file: the collector goes on
            self._warn(error)
            return HttpResponse(503, b"the spans could not be stored\n")
        finally:
            self._num_pending -= 1
        if shown is not None:
            self._ui.offer(shown)
        if self._otlp is not None:
            self._otlp.offer(body)
        return HttpResponse(200, b"", PROTOBUF)

    def _keep(self, body: bytes, is_gzip: bool) -> tuple[bytes, bytes | None]:
        """Store the spans; the body unpacked, and for the UI, None while none is there."""
        if is_gzip:
            body = gunzip(body, self._max_body_bytes)
        request = parse_request(body)
        spans = records_of(request)
        self._writer.add(spans)
        self.num_spans += len(spans)
        return body, fit_for_ui(request) if self._ui.is_open else None

    def _warn(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            _logger.warning("spans could not be stored", exc_info=error)


def gunzip(body: bytes, max_bytes: int) -> bytes:
    """The unpacked body. Raises ValueError where it is damaged, cut off or over `max_bytes`."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(body, max_bytes)
    except zlib.error:
        raise ValueError("the body is not gzip") from None
    if not unpacker.eof:
        raise ValueError(f"the body is cut off, or over {max_bytes} bytes when unpacked")
    return unpacked
