"""What an operator is told of a request: its spans through the store, as `millrace trace` reads."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

from millrace.core.errors import RequestNotFound
from millrace.telemetry.diagnosis import Diagnosis, diagnose
from millrace.telemetry.store import TraceStore
from millrace.telemetry.trace_writer import TraceWriter
from millrace.testing.span_recorder import SpanRecorder

WAIT_S = 5.0


async def diagnosis_of(recorder: SpanRecorder, request_id: str, folder: Path) -> Diagnosis:
    """The diagnosis once the root span is there; the scheduler's may come after it."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return _diagnose(recorder, request_id, folder / f"{request_id}.db")
            except RequestNotFound:
                await asyncio.sleep(0.05)


def _diagnose(recorder: SpanRecorder, request_id: str, path: Path) -> Diagnosis:
    path.unlink(missing_ok=True)
    with closing(TraceWriter(path)) as writer:
        writer.add(recorder.spans_of_services())
    with closing(TraceStore(path)) as store:
        trace = store.load(store.find(request_id))
    return diagnose(trace.spans, trace.steps)
