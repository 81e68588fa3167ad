"""The worker's own service around an engine without a model."""

from __future__ import annotations

import sys

import uvloop

from millrace.worker.__main__ import serve
from millrace.worker.config import WorkerConfig
from tests.faults.faulty_engine import FaultyEngine

if __name__ == "__main__":
    nats_url, worker_id, step_s = sys.argv[1:]
    # Only the engine's protocol is used: no model is loaded.
    engine = FaultyEngine(step_s=float(step_s))
    uvloop.run(serve(WorkerConfig(nats_url=nats_url, worker_id=worker_id), engine))  # type: ignore[arg-type]
