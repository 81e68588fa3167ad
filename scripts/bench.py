"""Measures a stack as its clients see it: speed, latency, hops, memory, idle CPU.

Starts a stack of its own, or measures a running one (--url, --grpc-address), of which only the
clients' side can be seen. Read bandwidth of the same minute stands beside every figure: on a CPU
it is what decoding is bound by. A run takes a few minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from bench_hops import hop_medians
from bench_machine import cpu_percent, peak_rss_mb, read_gb_per_s, stack_pids
from bench_report import print_report
from bench_telemetry import telemetry_cost

from millrace.cli.load.ask import Ask
from millrace.cli.load.grpc_target import GrpcTarget
from millrace.cli.load.http_target import HttpTarget
from millrace.cli.load.outcome import Load
from millrace.cli.load.prompts import Prompts
from millrace.cli.load.runner import LoadRun
from millrace.cli.load.statistics import load_figures
from millrace.config.home import millrace_home
from millrace.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from millrace.testing.stack import Stack, start_stack

STREAMS = (1, 8, 32)
NUM_REQUESTS = {1: 4, 8: 16, 32: 48}
NUM_TOKENS = 64
PROMPT_TOKENS = (30, 700)
IDLE_S = 20.0
SETTLE_S = 3.0


def main() -> None:
    """Runs what the flags ask for; exits with 2 for flags that do not fit together."""
    parser = _parser()
    arguments = parser.parse_args()
    if bool(arguments.url) != bool(arguments.grpc_address):
        parser.error("--url and --grpc-address go together")
    report: dict[str, Any] = {"dtype": arguments.dtype, "read_gb_per_s": read_gb_per_s()}
    if arguments.url:
        report["loads"] = asyncio.run(_loads(arguments.url, arguments.grpc_address, None, report))
    else:
        with _own_stack(arguments, report) as stack:
            _measure(stack, report)
    if arguments.telemetry_pairs:
        report["telemetry"] = telemetry_cost(arguments.telemetry_pairs, arguments.dtype)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="", help="HTTP address of a running stack")
    parser.add_argument("--grpc-address", default="", help="its gRPC address, host:port")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--workers", type=int, default=1, help="workers of the own stack")
    parser.add_argument(
        "--telemetry-pairs",
        type=int,
        default=0,
        help="pairs of runs with and without telemetry, on two more stacks; 0 leaves them out",
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    return parser


@contextmanager
def _own_stack(arguments: argparse.Namespace, report: dict[str, Any]) -> Iterator[Stack]:
    flags = ["--dtype", arguments.dtype, "--workers", str(arguments.workers)]
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as home:
        started_s = time.monotonic()
        with start_stack(Path(home), millrace_home().models, *flags) as stack:
            report["start_up_s"] = round(time.monotonic() - started_s, 2)
            yield stack


def _measure(stack: Stack, report: dict[str, Any]) -> None:
    time.sleep(SETTLE_S)
    pids = stack_pids(stack)
    report["idle_cpu_percent"] = cpu_percent(pids, IDLE_S)
    request_ids: list[str] = []
    report["loads"] = asyncio.run(
        _loads(stack.http_url, stack.grpc_address, stack, report, request_ids)
    )
    report["hops_ms"] = hop_medians(stack.home / "run" / "spans.db", request_ids)
    report["peak_rss_mb"] = {name: peak_rss_mb(pid) for name, pid in pids.items()}


async def _loads(
    url: str,
    grpc_address: str,
    stack: Stack | None,
    report: dict[str, Any],
    request_ids: list[str] | None = None,
) -> list[dict[str, Any]]:
    """The figures of every load. Ids of the requests that ran alone over gRPC are added."""
    prompts = Prompts(time.time_ns())
    targets: list[GrpcTarget | HttpTarget] = [GrpcTarget(grpc_address), HttpTarget(url)]
    loads = []
    for target in targets:
        await _load(target, _asks(prompts, 2, 8), 2)
    for num_streams in STREAMS:
        for target in targets:
            bandwidth = read_gb_per_s()
            before = await _decode_counts(stack)
            asks = _asks(prompts, NUM_REQUESTS[num_streams], NUM_TOKENS)
            load = await _load(target, asks, num_streams)
            after = await _decode_counts(stack)
            loads.append(_figures(load, before, after, bandwidth))
            if request_ids is not None and num_streams == 1 and target.protocol == "grpc":
                request_ids += [outcome.request_id for outcome in load.outcomes]
    for target in targets:
        await target.close()
    return loads


def _asks(prompts: Prompts, count: int, num_tokens: int) -> list[Ask]:
    return [Ask(text, num_tokens) for text in prompts.draw_spread(count, *PROMPT_TOKENS)]


async def _load(target: GrpcTarget | HttpTarget, asks: list[Ask], num_streams: int) -> Load:
    """A closed loop. Raises RuntimeError where a request failed: its figures would mislead."""
    load = await LoadRun(target).closed_loop(asks, num_streams)
    if load.errors():
        raise RuntimeError(f"requests failed: {load.errors()}")
    return load


def _figures(
    load: Load, before: tuple[int, int], after: tuple[int, int], bandwidth: float
) -> dict[str, Any]:
    num_rows, num_steps = after[0] - before[0], after[1] - before[1]
    mean_batch = round(num_rows / num_steps, 2) if num_steps else None
    return {**load_figures(load), "mean_decode_batch": mean_batch, "read_gb_per_s": bandwidth}


async def _decode_counts(stack: Stack | None) -> tuple[int, int]:
    """Rows decoded and steps with any, over all workers; zeros where it is not our stack."""
    if stack is None:
        return 0, 0
    async with grpc.aio.insecure_channel(stack.address_of("scheduler")) as channel:
        stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        stats = await stub.GetStats(scheduler_pb2.GetStatsRequest(), timeout=5)
    num_rows = sum(worker.num_decode_rows for worker in stats.workers)
    return num_rows, sum(worker.num_decode_steps for worker in stats.workers)


if __name__ == "__main__":
    main()
