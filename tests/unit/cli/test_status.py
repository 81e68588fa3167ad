"""`millrace status`: load, speeds and what the gateway reaches, against servers of the tests."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from millrace.cli.console import Console
from millrace.cli.http_probe import get_text
from millrace.cli.stack.process_info import start_mark
from millrace.cli.stack.run_file import ProcessRecord, StackRecord, write_run_file
from millrace.cli.stack_load import StackLoad, WorkerLoad, read_load, set_speeds
from millrace.cli.status import _show, gateway_views, stack_report
from millrace.config.home import Home

READY = {
    "status": "ready",
    "checks": {"nats": True, "tokenizer": True, "scheduler": True, "worker": True},
    "degraded": ["cache"],
    "reasons": {"cache": "connection refused"},
}
SCHEDULER = """\
# TYPE millrace_num_requests_running gauge
millrace_num_requests_running{model_name="m"} 3.0
# TYPE millrace_num_requests_waiting gauge
millrace_num_requests_waiting{model_name="m"} 2.0
# TYPE millrace_nats_pending gauge
millrace_nats_pending{model_name="m",priority="normal"} 4.0
millrace_nats_pending{model_name="m",priority="high"} 1.0
# TYPE millrace_kv_cache_usage_perc gauge
millrace_kv_cache_usage_perc{model_name="m",worker_id="w-a"} 0.25
"""
WORKER = """\
# TYPE millrace_live_rows gauge
millrace_live_rows{{model_name="m",worker_id="{worker_id}"}} {rows}
# TYPE millrace_engine_tokens_total counter
millrace_engine_tokens_total{{kind="prefill",model_name="m",worker_id="{worker_id}"}} 9000.0
millrace_engine_tokens_total{{kind="decode",model_name="m",worker_id="{worker_id}"}} {tokens}
"""


class FakeStack:
    """What each path answers; a path that is not there never answers."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {"/ready": json.dumps(READY), "/scheduler": SCHEDULER}
        self.frozen = threading.Event()
        pages, frozen = self.pages, self.frozen

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path not in pages:
                    frozen.wait(20)
                    return
                body = pages[self.path].encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def record(self, *names: str) -> StackRecord:
        processes = [
            ProcessRecord(
                name,
                "ready",
                1_234_567,
                address="127.0.0.1:50051",
                started=time.time() - 50,
                metrics_url=f"{self.url}/{name}",
            )
            for name in names
        ]
        me = os.getpid()
        endpoints = {"http": self.url, "grpc": "127.0.0.1:50051"}
        return StackRecord(me, start_mark(me), time.time(), "ready", "m", endpoints, processes)

    def set_worker(self, process: str, worker_id: str, rows: int = 0, tokens: int = 0) -> None:
        text = WORKER.format(worker_id=worker_id, rows=rows, tokens=tokens)
        self.pages[f"/{process}"] = text


@pytest.fixture
def stack() -> Iterator[FakeStack]:
    fake = FakeStack()
    yield fake
    fake.frozen.set()
    fake.server.shutdown()
    fake.server.server_close()


def test_load_is_read_from_scheduler_and_workers(stack: FakeStack) -> None:
    stack.set_worker("worker-1", "w-a")
    stack.set_worker("worker-2", "w-b")
    record = stack.record("nats", "scheduler", "worker-1", "worker-2")

    load = read_load(record.processes)

    assert (load.num_running, load.num_waiting, load.num_queued) == (3, 2, 5)
    assert [(w.process, w.worker_id, w.kv_usage) for w in load.workers] == [
        ("worker-1", "w-a", 0.25),
        ("worker-2", "w-b", None),
    ]
    assert [worker.tokens_per_s for worker in load.workers] == [0.0, 0.0], "nobody runs"


def test_a_stack_that_works_is_looked_at_twice(stack: FakeStack) -> None:
    stack.set_worker("worker", "w-a", rows=2, tokens=100)

    def pause(duration_s: float) -> None:
        stack.set_worker("worker", "w-a", rows=3, tokens=150)

    (worker,) = read_load(stack.record("scheduler", "worker").processes, pause=pause).workers

    assert worker.num_rows == 3
    assert worker.tokens_per_s is not None and worker.tokens_per_s > 0


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (StackLoad(workers=[WorkerLoad("worker", "a", num_tokens=100)], at_s=8.0), 25.0),
        (StackLoad(workers=[WorkerLoad("worker", "b", num_tokens=100)], at_s=8.0), None),
        (StackLoad(workers=[WorkerLoad("other", "a", num_tokens=100)], at_s=8.0), None),
        (StackLoad(workers=[WorkerLoad("worker", "a", num_tokens=100)], at_s=10.0), None),
        (None, 0.0),
    ],
)
def test_speed_is_what_was_decoded_since(before: StackLoad | None, expected: float | None) -> None:
    load = StackLoad(workers=[WorkerLoad("worker", "a", num_tokens=150)], at_s=10.0)

    set_speeds(load, before)

    assert load.workers[0].tokens_per_s == expected


def test_a_worker_that_was_started_again_has_no_speed_yet(stack: FakeStack) -> None:
    stack.set_worker("worker", "w-a", tokens=5000)
    record = stack.record("scheduler", "worker")
    before = read_load(record.processes)
    stack.set_worker("worker", "w-new", tokens=3)

    assert read_load(record.processes, before).workers[0].tokens_per_s is None


def test_a_frozen_worker_costs_one_wait_and_is_told(
    stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.set_worker("worker-1", "w-a")
    record = stack.record("scheduler", "worker-1", "worker-2", "worker-3")
    monkeypatch.setattr(
        "millrace.cli.stack_load.get_text", lambda url: get_text(url, timeout_s=0.5)
    )

    began = time.monotonic()
    load = read_load(record.processes)
    views = gateway_views(record, 200, READY, load)

    assert time.monotonic() - began < 5
    assert load.workers[1].worker_id == "" and load.workers[1].tokens_per_s is None
    assert (views["worker-1"], views["worker-2"], views["worker-3"]) == (True, False, False)


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (200, READY, {"nats": True, "cache": False, "worker": True, "gateway": True}),
        (0, None, {"nats": None, "cache": None, "worker": None, "gateway": False}),
        (503, {"checks": {"nats": False}}, {"nats": False, "cache": True, "gateway": True}),
        (500, "<html>", {"nats": None, "cache": True, "gateway": True}),
        (200, {"checks": None, "degraded": None}, {"nats": None, "cache": True}),
    ],
)
def test_what_the_gateway_reaches_is_told_by_process(
    status: int, answer: object, expected: dict[str, bool | None]
) -> None:
    names = ("nats", "valkey", "cache", "worker", "gateway")
    record = StackRecord(1, "", 0.0, processes=[ProcessRecord(name) for name in names])

    views = gateway_views(record, status, answer, None)

    assert views["valkey"] is None
    assert {name: views[name] for name in expected} == expected


@pytest.mark.parametrize("page", ["", "<html>", "millrace_live_rows{", "\x00", "a 1\nb"])
def test_a_port_that_serves_something_else_is_no_failure(stack: FakeStack, page: str) -> None:
    stack.pages |= {"/scheduler": page, "/worker": page}

    load = read_load(stack.record("scheduler", "worker").processes)

    assert (load.num_running, load.workers[0].num_rows) == (0, 0)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_status_fits_80_columns(stack: FakeStack) -> None:
    stack.set_worker("worker-1", "w-a", rows=64)
    names = ("nats", "valkey", "collector", "tokenizer", "scheduler", "worker-1", "gateway")
    record = stack.record(*names)
    screen = Terminal()
    console = Console(screen, environ={"COLUMNS": "80", "NO_COLOR": "1"})

    _show(console, stack_report(record, read_load(record.processes)))

    lines = screen.getvalue().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("process"))
    table = lines[start : start + 1 + len(names)]
    assert max(map(len, table)) <= 80
    assert all(line.endswith("127.0.0.1:50051") for line in table[1:])
    assert "3 running, 2 waiting for a row, 5 not fetched yet" in lines


@pytest.mark.parametrize("has_stack", [True, False])
def test_watch_goes_on_until_ctrl_c(stack: FakeStack, tmp_path: Path, has_stack: bool) -> None:
    stack.set_worker("worker", "w-a", tokens=100)
    home = Home(tmp_path)
    home.run.mkdir(parents=True)
    if has_stack:
        write_run_file(home, stack.record("scheduler", "worker"))
    hear_ctrl_c = (
        "import runpy, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('millrace.cli', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hear_ctrl_c, "status", "--watch", "0.05", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "MILLRACE_HOME": str(tmp_path)},
        text=True,
    )
    assert process.stdout is not None
    reports = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)

    assert (process.returncode, errors) == (0 if has_stack else 1, "")
    assert [report["is_running"] for report in reports] == [has_stack] * 3
    if has_stack:
        (worker,) = reports[-1]["load"]["workers"]
        assert (worker["kv_usage"], worker["tokens_per_s"]) == (0.25, 0.0)
