"""The OTLP/HTTP exporter, made harmless: it gives up early, rests, counts, and warns once a minute.

The SDK's batch processor calls `export` in its own thread. With nobody at the endpoint each batch
would cost retries and log lines; here a failure closes the door for a few seconds, and the batches
of that time are dropped and counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from millrace.core.loopback import is_loopback

from .otlp_settings import ExportSettings

if TYPE_CHECKING:
    import requests

WARNING_INTERVAL_S = 60.0
REST_S = 5.0
DEFAULT_TIMEOUT_S = 3.0
# Without spans to send nothing is tried, so nothing is known any more.
FAILURE_LIFETIME_S = 30.0

# Their own complaints, one or more per batch; ours replace them. Two of them quote what may be
# secret: headers, and the whole address.
NOISY_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.util.re",
    "urllib3.connectionpool",
)

_logger = logging.getLogger(__name__)


class GuardedExporter(SpanExporter):
    """Wraps an exporter; `num_exported` and `num_dropped` count spans."""

    def __init__(
        self, inner: SpanExporter, endpoint: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._clock = clock
        self._resting_until = 0.0
        self._warned_at: float | None = None
        self._failed_at: float | None = None
        self.num_exported = 0
        self.num_dropped = 0

    @property
    def is_failing(self) -> bool:
        """True if the last try failed, less than FAILURE_LIFETIME_S ago."""
        failed_at = self._failed_at
        return failed_at is not None and self._clock() - failed_at < FAILURE_LIFETIME_S

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans, or drop them; never raises."""
        if self._clock() < self._resting_until:
            return self._drop(spans)
        try:
            result = self._inner.export(spans)
        except Exception as error:  # an exporter's defect must not end the batch thread
            return self._fail(spans, type(error).__name__)
        if result is not SpanExportResult.SUCCESS:
            return self._fail(spans, "not accepted")
        self._failed_at = None
        self.num_exported += len(spans)
        return result

    def shutdown(self) -> None:
        """End a wait between retries, then close."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return True

    def _drop(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_dropped += len(spans)
        return SpanExportResult.FAILURE

    def _fail(self, spans: Sequence[ReadableSpan], reason: str) -> SpanExportResult:
        self._drop(spans)
        now = self._clock()
        self._failed_at = now
        self._resting_until = now + REST_S
        if self._warned_at is None or now - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            _logger.warning(
                "traces are not being exported",
                extra={
                    "endpoint": self._endpoint,
                    "reason": reason,
                    "spans_dropped": self.num_dropped,
                },
            )
        return SpanExportResult.FAILURE


class CountingProcessor(BatchSpanProcessor):
    """Counts, as dropped by its exporter, the span that falls out of a full queue for a new one."""

    def __init__(
        self,
        exporter: GuardedExporter,
        *,
        max_queue_size: int | None = None,
        max_export_batch_size: int | None = None,
        schedule_delay_millis: float | None = None,
    ) -> None:
        super().__init__(
            exporter,
            max_queue_size=max_queue_size,
            max_export_batch_size=max_export_batch_size,
            schedule_delay_millis=schedule_delay_millis,
        )
        self._exporter = exporter

    def on_end(self, span: ReadableSpan) -> None:
        """Queues the span."""
        queue = self._batch_processor._queue
        if len(queue) == queue.maxlen and span.context and span.context.trace_flags.sampled:
            self._exporter.num_dropped += 1
        super().on_end(span)


def create_exporter(settings: ExportSettings) -> GuardedExporter:
    """The exporter to one destination; no library sees the password in its URL."""
    # Costs about 0.1 s to import, so only where it is used.
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(
        endpoint=settings.endpoint.without_credentials(),
        headers=settings.headers,
        timeout=settings.timeout_s or DEFAULT_TIMEOUT_S,
        compression=Compression(settings.compression),
        certificate_file=settings.certificate or None,
        client_certificate_file=settings.client_certificate or None,
        client_key_file=settings.client_key or None,
        session=open_session(settings),
    )
    return GuardedExporter(exporter, settings.shown)


def open_session(settings: ExportSettings) -> requests.Session:
    """Connections to the destination; beyond loopback by the proxy that the environment names."""
    import requests

    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    session = requests.Session()
    # Proxies are for the outside; a proxy cannot reach our loopback.
    session.trust_env = not is_loopback(settings.endpoint.host)
    return session
