"""`millrace status`: the processes of the running stack, its load, and what the gateway says."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from millrace.config.home import millrace_home
from millrace.core.own_command import own_command
from millrace.hub.byte_size import format_bytes

from .console import Console, as_json, format_duration
from .count import positive_number
from .http_probe import get_json
from .readiness import describe_readiness
from .stack.metrics_targets import FILE_NAME as TARGETS_FILE
from .stack.process_info import resident_bytes
from .stack.run_file import NO_STACK, ProcessRecord, StackRecord, running_stack
from .stack_load import StackLoad, WorkerLoad, is_worker, read_load

WATCH_S = 2.0
MAX_WATCH_S = 86_400.0
CLEAR_SCREEN = "\x1b[H\x1b[2J"


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("status", help="show processes and load of the running stack")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=positive_number,
        const=WATCH_S,
        metavar="SECONDS",
        help=f"again so often, until Ctrl-C; default: once, and {WATCH_S:g} s without SECONDS",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """0 where a stack runs and the gateway is ready, else 1."""
    if args.watch is not None:
        return _watch(args.watch, as_lines=args.json)
    console, report = Console(), full_report(running_stack(millrace_home()))
    if args.json:
        console.json(report)
    else:
        _show(console, report)
    return 0 if report["gateway"]["is_ready"] else 1


def _watch(interval_s: float, *, as_lines: bool) -> int:
    """Shows it again and again; Ctrl-C is how one stops that, and the status is that of the end."""
    console, before, is_ready = Console(), None, False
    try:
        while True:
            record = running_stack(millrace_home())
            load = read_load(record.processes, before) if record else None
            report = stack_report(record, load)
            is_ready, before = report["gateway"]["is_ready"], load
            if as_lines:
                console.line(as_json(report, sys.stdout))
            else:
                if console.width is not None:
                    console.write(CLEAR_SCREEN)
                _show(console, report)
            time.sleep(min(interval_s, MAX_WATCH_S))
    except KeyboardInterrupt:
        return 0 if is_ready else 1


def full_report(record: StackRecord | None) -> dict[str, Any]:
    """Everything that `status` knows, ready for JSON."""
    return stack_report(record, read_load(record.processes) if record else None)


def stack_report(record: StackRecord | None, load: StackLoad | None = None) -> dict[str, Any]:
    """As `full_report`, with a load that is known already, or without one."""
    if record is None:
        return {"is_running": False, "gateway": {"is_ready": False}, "processes": []}
    status, document = get_json(record.endpoints["http"] + "/ready")
    views = gateway_views(record, status, document, load)
    return {
        "is_running": True,
        "pid": record.pid,
        "state": record.state,
        "model": record.model,
        "uptime_s": round(time.time() - record.started, 1),
        "endpoints": record.endpoints,
        "gateway": {"is_ready": status == 200, "status": status, "answer": document},
        "processes": [_process_report(item, views[item.name]) for item in record.processes],
        **({"load": _load_report(load)} if load else {}),
    }


def gateway_views(
    record: StackRecord, status: int, answer: Any, load: StackLoad | None
) -> dict[str, bool | None]:
    """By process: does the gateway reach it, directly or through the scheduler? None: not known."""
    known = answer if isinstance(answer, Mapping) else {}
    views: dict[str, bool | None] = dict(known.get("checks") or {})
    views["gateway"] = status != 0
    if status:
        views["cache"] = "cache" not in (known.get("degraded") or ())
    for item in record.processes:
        worker = load.worker(item.name) if load else None
        if worker is not None and load is not None and load.has_scheduler:
            views[item.name] = worker.kv_usage is not None
        elif is_worker(item.name):
            views[item.name] = views.get("worker")
    return {item.name: views.get(item.name) for item in record.processes}


def _process_report(item: ProcessRecord, is_seen: bool | None) -> dict[str, Any]:
    return {
        "name": item.name,
        "pid": item.pid,
        "state": item.state,
        "is_seen_by_gateway": is_seen,
        "address": item.address,
        "uptime_s": round(time.time() - item.started, 1) if item.pid else 0.0,
        "rss_bytes": resident_bytes(item.pid) if item.pid else 0,
        "num_restarts": item.num_restarts,
        "metrics_url": item.metrics_url,
    }


def _load_report(load: StackLoad) -> dict[str, Any]:
    return {
        "num_running": load.num_running,
        "num_waiting": load.num_waiting,
        "num_queued": load.num_queued,
        "workers": [_worker_report(worker) for worker in load.workers],
    }


def _worker_report(worker: WorkerLoad) -> dict[str, Any]:
    speed = worker.tokens_per_s
    return {
        "process": worker.process,
        "worker_id": worker.worker_id,
        "num_rows": worker.num_rows,
        "kv_usage": worker.kv_usage,
        "tokens_per_s": None if speed is None else round(speed, 1),
    }


def _show(console: Console, report: dict[str, Any]) -> None:
    if not report["is_running"]:
        console.line(NO_STACK.format(own_command("up")))
        return
    gateway = report["gateway"]
    said = describe_readiness(gateway["status"], gateway["answer"])
    console.prose(
        f"{report['model']}: {said}; up {format_duration(report['uptime_s'])}, pid {report['pid']}",
        colour="green" if gateway["is_ready"] else "red",
    )
    if load := report.get("load"):
        _show_load(console, load)
    rows = [
        [
            item["name"],
            str(item["pid"] or "-"),
            item["state"],
            {True: "yes", False: "no", None: "-"}[item["is_seen_by_gateway"]],
            format_duration(item["uptime_s"]),
            format_bytes(item["rss_bytes"]),
            str(item["num_restarts"]),
            item["address"],
        ]
        for item in report["processes"]
    ]
    # In 80 columns, with pids of seven digits.
    header = ["process", "pid", "state", "reached", "up", "memory", "restarts", "address"]
    console.table(header, rows, right=["pid", "up", "memory", "restarts"])
    console.line("reached: by the gateway, directly or through the scheduler")
    for name in ("http", "grpc"):
        console.line(f"{name}  {report['endpoints'][name]}")
    console.line(f"metrics  {millrace_home().run / TARGETS_FILE} (Prometheus: file_sd_configs)")


def _show_load(console: Console, load: dict[str, Any]) -> None:
    console.line(
        f"{load['num_running']} running, {load['num_waiting']} waiting for a row, "
        f"{load['num_queued']} not fetched yet"
    )
    rows = [
        [
            worker["process"],
            str(worker["num_rows"]),
            "-" if worker["kv_usage"] is None else f"{worker['kv_usage']:.0%}",
            "-" if worker["tokens_per_s"] is None else f"{worker['tokens_per_s']:.1f}",
        ]
        for worker in load["workers"]
    ]
    header = ["worker", "running", "KV used", "tokens/s"]
    console.line()
    console.table(header, rows, right=header[1:])
    console.line()
