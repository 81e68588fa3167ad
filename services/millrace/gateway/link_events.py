"""Tells a request's trace that it lost its scheduler, and when it was taken up again."""

from __future__ import annotations

from opentelemetry.trace import Span

from millrace.telemetry.names import (
    ATTR_ATTEMPT,
    ATTR_SILENT_S,
    EVENT_SCHEDULER_BACK,
    EVENT_SCHEDULER_LOST,
)

from .live_request import LiveRequest


def watch_link(live: LiveRequest, span: Span) -> None:
    """Adds events to the request's root span from now on."""

    def lost(silent_s: float) -> None:
        span.add_event(EVENT_SCHEDULER_LOST, {ATTR_SILENT_S: silent_s} if silent_s else None)

    def back(owner_epoch: int) -> None:
        span.add_event(EVENT_SCHEDULER_BACK, {ATTR_ATTEMPT: owner_epoch})

    live.on_link_lost, live.on_link_back = lost, back
