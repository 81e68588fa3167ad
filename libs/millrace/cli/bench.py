"""`millrace bench`: what a server's clients see under load, closed, open or recorded."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core.errors import ConfigError

from .console import Console
from .count import positive_count, positive_number
from .exit_status import EXIT_FAILURE, EXIT_INTERRUPTED

if TYPE_CHECKING:
    from .load.outcome import Load
    from .load.workload import Workload

DEFAULT_CONCURRENCY = 8
DEFAULT_REQUESTS = 64


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "bench",
        help="measure a server under load",
        description="Closed loop by default; --rate or --trace make it an open loop.",
    )
    where = parser.add_argument_group("server")
    where.add_argument("--url", help="any OpenAI-compatible server; default: the running stack")
    where.add_argument("--address", help="host:port of a gateway's gRPC; default: the stack's")
    where.add_argument(
        "--protocol", choices=("grpc", "http"), help="default: http with --url, else grpc"
    )
    where.add_argument(
        "--endpoint",
        choices=("completions", "chat"),
        default="completions",
        help="route of HTTP; default: completions",
    )
    where.add_argument(
        "--model", default="", help="served name; default: the server's own, or its first"
    )
    where.add_argument(
        "--api-key-env", help="variable that holds the server's key; default: no key"
    )
    load = parser.add_argument_group("load")
    load.add_argument(
        "--concurrency",
        type=positive_count,
        help=f"closed loop: streams at once; default: {DEFAULT_CONCURRENCY}",
    )
    load.add_argument(
        "--rate",
        type=positive_number,
        help="open loop: requests/s, inf sends all at once; default: closed loop",
    )
    load.add_argument(
        "--burstiness",
        type=positive_number,
        default=1.0,
        help="of arrivals: less is burstier; default: 1, Poisson",
    )
    load.add_argument(
        "--burst", type=positive_count, default=1, help="requests that come together; default: 1"
    )
    load.add_argument(
        "--trace", type=Path, help="JSON lines in Mooncake's format; default: no trace"
    )
    load.add_argument(
        "--speed",
        type=positive_number,
        default=1.0,
        help="of the trace, 2 halves its time; default: 1",
    )
    load.add_argument(
        "--requests",
        type=positive_count,
        help=f"most to send; default: {DEFAULT_REQUESTS}, or the whole trace",
    )
    load.add_argument(
        "--duration", type=positive_number, default=600.0, help="most seconds for all; default: 600"
    )
    load.add_argument(
        "--timeout", type=positive_number, default=600.0, help="most seconds for one; default: 600"
    )
    load.add_argument(
        "--warmup", type=int, default=2, help="requests before, not counted; default: 2"
    )
    load.add_argument(
        "--input-tokens",
        type=_spread,
        default=(128, 128),
        help="of a prompt, 30-700 for a spread; default: 128",
    )
    load.add_argument(
        "--output-tokens", type=positive_count, default=64, help="of an answer; default: 64"
    )
    load.add_argument("--natural-stop", action="store_true", help="let answers end by themselves")
    load.add_argument(
        "--seed", type=int, help="same seed: same prompts, same arrivals; default: drawn"
    )
    parser.add_argument(
        "--slo",
        help="what makes an answer good, ms: ttft=500,tpot=50,e2e=5000; default: not judged",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """0 where every request was answered, 1 where any failed, 130 after Ctrl-C."""
    import uvloop

    from .load.report import show_load
    from .load.slo import parse_slo
    from .load.statistics import load_figures

    _refuse_contradictions(args)
    slo = parse_slo(args.slo) if args.slo else None
    workload = _workload(args)
    load = uvloop.run(_measure(args, workload))
    figures = {"load": workload.about, "seed": workload.seed, **load_figures(load, slo)}
    console = Console()
    if args.json:
        console.json(figures)
    else:
        console.prose(f"{workload.about}, seed {workload.seed}")
        show_load(console, figures, slo)
    if load.was_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILURE if figures["failed"] or not figures["requests"] else 0


def _refuse_contradictions(args: argparse.Namespace) -> None:
    chosen = [
        f"--{name}" for name in ("concurrency", "rate", "trace") if getattr(args, name) is not None
    ]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other", field="rate")
    if args.rate is None and (args.burst != 1 or args.burstiness != 1.0):
        raise ConfigError("--burst and --burstiness need --rate", field="burst")
    if args.url and args.address:
        raise ConfigError("--url and --address exclude each other", field="url")
    protocol = _protocol(args)
    if (protocol == "grpc" and args.url) or (protocol == "http" and args.address):
        flag = "--address" if protocol == "grpc" else "--url"
        raise ConfigError(f"--protocol {protocol} goes with {flag}", field="protocol")
    if protocol == "grpc" and args.endpoint == "chat":
        raise ConfigError("--endpoint chat goes with --protocol http", field="endpoint")


def _protocol(args: argparse.Namespace) -> str:
    return str(args.protocol or ("http" if args.url else "grpc"))


def _workload(args: argparse.Namespace) -> Workload:
    from .load.lengths import Lengths
    from .load.workload import closed_workload, open_workload, trace_workload

    # A fresh seed, so that a second run finds no prompt of the first in a prefix cache.
    seed = time.time_ns() % (1 << 32) if args.seed is None else args.seed
    if args.trace is not None:
        return trace_workload(args.trace, limit=args.requests, speed=args.speed, seed=seed)
    count = args.requests or DEFAULT_REQUESTS
    least, most = args.input_tokens
    lengths = Lengths(least, most, args.output_tokens)
    if args.rate is not None:
        return open_workload(
            count, lengths, args.rate, burstiness=args.burstiness, burst=args.burst, seed=seed
        )
    return closed_workload(count, lengths, args.concurrency or DEFAULT_CONCURRENCY, seed=seed)


async def _measure(args: argparse.Namespace, workload: Workload) -> Load:
    import asyncio
    import signal

    from .load.runner import Limits, LoadRun

    target = await _target(args)
    try:
        await workload.warm_up(target, args.warmup, args.timeout)
        load_run = LoadRun(target, Limits(args.duration, args.timeout))
        # What was seen until Ctrl-C is shown: the signal ends the load, not the process.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, load_run.stop)
        try:
            return await workload.run(load_run)
        finally:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
    finally:
        await target.close()


async def _target(args: argparse.Namespace) -> Any:
    from .client import default_address

    ignore_eos = not args.natural_stop
    if _protocol(args) == "grpc":
        from .load.grpc_target import GrpcTarget

        address = args.address or default_address()
        return GrpcTarget(address, model=args.model, ignore_eos=ignore_eos)
    from .load.http_target import HttpTarget

    target = HttpTarget(
        args.url or _default_url(),
        model=args.model,
        ignore_eos=ignore_eos,
        endpoint=args.endpoint,
        api_key=_api_key(args.api_key_env),
    )
    await target.choose_model()
    return target


def _default_url() -> str:
    from millrace.config.home import millrace_home

    from .stack.run_file import running_stack

    record = running_stack(millrace_home())
    return record.endpoints["http"] if record else "http://127.0.0.1:8080"


def _api_key(variable: str | None) -> str:
    from millrace.config.environment import current_environment

    if variable is None:
        return ""
    key = current_environment().get(variable, "")
    if not key:
        raise ConfigError(f"{variable} is not set", field="api_key_env")
    return key


def _spread(text: str) -> tuple[int, int]:
    """Least and most of `128` or `30-700`. Raises argparse's error for anything else."""
    least, dash, most = text.partition("-")
    spread = positive_count(least), positive_count(most if dash else least)
    if spread[0] > spread[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: {spread[0]} is more than {spread[1]}")
    return spread
