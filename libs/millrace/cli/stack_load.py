"""How busy a running stack is, from the metrics of its scheduler and workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .http_probe import get_text
from .stack.run_file import ProcessRecord

# Two looks so far apart tell a speed.
SAMPLE_S = 0.5
_RUNNING = "millrace_num_requests_running"
_WAITING = "millrace_num_requests_waiting"
_QUEUED = "millrace_nats_pending"
_KV_USAGE = "millrace_kv_cache_usage_perc"
_ROWS = "millrace_live_rows"
_TOKENS = "millrace_engine_tokens_total"


@dataclass(slots=True)
class WorkerLoad:
    """One worker process. `worker_id` is empty if it does not answer.

    `kv_usage` (0 to 1) is None for a worker that the scheduler does not have; `num_tokens` counts
    decoded tokens since its start.
    """

    process: str
    worker_id: str = ""
    num_rows: int = 0
    num_tokens: int = 0
    kv_usage: float | None = None
    tokens_per_s: float | None = None


@dataclass(slots=True)
class StackLoad:
    """`has_scheduler` is False if no scheduler tells of its requests; counts are 0 then."""

    has_scheduler: bool = False
    num_running: int = 0
    num_waiting: int = 0
    num_queued: int = 0
    workers: list[WorkerLoad] = field(default_factory=list)
    at_s: float = 0.0

    def worker(self, process: str) -> WorkerLoad | None:
        """By the name of its process."""
        return next((worker for worker in self.workers if worker.process == process), None)


def is_worker(process: str) -> bool:
    """Names are `worker`, or `worker-1` and so on."""
    return process.partition("-")[0] == "worker"


def read_load(
    processes: Sequence[ProcessRecord],
    before: StackLoad | None = None,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> StackLoad:
    """Asks all at once; who does not answer in time counts as silent.

    `before` gives the speeds since then. Without it a stack that works is looked at twice.
    """
    load = _read(processes)
    if before is None and any(worker.num_rows for worker in load.workers):
        pause(SAMPLE_S)
        before, load = load, _read(processes)
    set_speeds(load, before)
    return load


def set_speeds(load: StackLoad, before: StackLoad | None) -> None:
    """Tokens/s of each worker since `before`."""
    for worker in load.workers:
        worker.tokens_per_s = _speed(worker, load.at_s, before)


def _speed(worker: WorkerLoad, at_s: float, before: StackLoad | None) -> float | None:
    """None if it cannot be told: the worker is silent, or another one than before."""
    earlier = before.worker(worker.process) if before else None
    if not worker.worker_id:
        return None
    if before is None:
        return 0.0
    if earlier is None or earlier.worker_id != worker.worker_id or at_s <= before.at_s:
        return None
    return (worker.num_tokens - earlier.num_tokens) / (at_s - before.at_s)


def _read(processes: Sequence[ProcessRecord]) -> StackLoad:
    asked = [
        item
        for item in processes
        if item.metrics_url and (is_worker(item.name) or item.name == "scheduler")
    ]
    load = StackLoad(at_s=time.monotonic())
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        texts = list(pool.map(lambda item: get_text(item.metrics_url)[1], asked))
    usage: dict[str, float] = {}
    for item, text in zip(asked, texts, strict=True):
        samples = list(_samples(text))
        if is_worker(item.name):
            load.workers.append(_worker_load(item.name, samples))
        elif samples:
            load.has_scheduler = True
            load.num_running = int(_total(samples, _RUNNING))
            load.num_waiting = int(_total(samples, _WAITING))
            load.num_queued = int(_total(samples, _QUEUED))
            usage = {s.labels["worker_id"]: s.value for s in samples if s.name == _KV_USAGE}
    for worker in load.workers:
        worker.kv_usage = usage.get(worker.worker_id)
    return load


def _worker_load(process: str, samples: Iterable[Any]) -> WorkerLoad:
    load = WorkerLoad(process)
    for sample in samples:
        if sample.name == _ROWS:
            load.worker_id, load.num_rows = sample.labels["worker_id"], int(sample.value)
        elif sample.name == _TOKENS and sample.labels["kind"] == "decode":
            load.num_tokens = int(sample.value)
    return load


def _samples(text: str) -> list[Any]:
    """Nothing for what is no list of metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(text))
    except ValueError:
        return []
    return [sample for family in families for sample in family.samples]


def _total(samples: Iterable[Any], name: str) -> float:
    return float(sum(sample.value for sample in samples if sample.name == name))
