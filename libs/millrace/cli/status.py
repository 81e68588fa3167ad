"""`millrace status`: the processes of the running stack and what the gateway says."""

from __future__ import annotations

import argparse
import time
from typing import Any

from millrace.config.home import millrace_home
from millrace.core.own_command import own_command
from millrace.hub.byte_size import format_bytes

from .console import Console, format_duration
from .http_probe import get_json
from .readiness import describe_readiness
from .stack.metrics_targets import FILE_NAME as TARGETS_FILE
from .stack.process_info import resident_bytes
from .stack.run_file import NO_STACK, ProcessRecord, StackRecord, running_stack


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("status", help="show the processes of the running stack")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """0 where a stack runs and the gateway is ready, else 1."""
    record, console = running_stack(millrace_home()), Console()
    report = stack_report(record)
    if args.json:
        console.json(report)
    elif record is None:
        console.line(NO_STACK.format(own_command("up")))
    else:
        _show(console, report)
    return 0 if report["gateway"]["is_ready"] else 1


def stack_report(record: StackRecord | None) -> dict[str, Any]:
    """Everything that `status` knows, ready for JSON."""
    if record is None:
        return {"is_running": False, "gateway": {"is_ready": False}, "processes": []}
    status, document = get_json(record.endpoints["http"] + "/ready")
    return {
        "is_running": True,
        "pid": record.pid,
        "state": record.state,
        "model": record.model,
        "uptime_s": round(time.time() - record.started, 1),
        "endpoints": record.endpoints,
        "gateway": {"is_ready": status == 200, "status": status, "answer": document},
        "processes": [_process_report(item) for item in record.processes],
    }


def _process_report(item: ProcessRecord) -> dict[str, Any]:
    return {
        "name": item.name,
        "pid": item.pid,
        "state": item.state,
        "address": item.address,
        "uptime_s": round(time.time() - item.started, 1) if item.pid else 0.0,
        "rss_bytes": resident_bytes(item.pid) if item.pid else 0,
        "num_restarts": item.num_restarts,
        "metrics_url": item.metrics_url,
    }


def _show(console: Console, report: dict[str, Any]) -> None:
    gateway = report["gateway"]
    said = describe_readiness(gateway["status"], gateway["answer"])
    console.line(
        f"{report['model']}: {console.paint(said, 'green' if gateway['is_ready'] else 'red')}; "
        f"up {format_duration(report['uptime_s'])}, pid {report['pid']}"
    )
    rows = [
        [
            item["name"],
            str(item["pid"] or "-"),
            item["state"],
            format_duration(item["uptime_s"]),
            format_bytes(item["rss_bytes"]),
            str(item["num_restarts"]),
            item["address"],
        ]
        for item in report["processes"]
    ]
    console.table(["process", "pid", "state", "uptime", "memory", "restarts", "address"], rows)
    for name in ("http", "grpc"):
        console.line(f"{name}  {report['endpoints'][name]}")
    console.line(f"metrics  {millrace_home().run / TARGETS_FILE} (Prometheus: file_sd_configs)")
