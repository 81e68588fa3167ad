"""`millrace bus init`: makes the stream, the consumers and the buckets."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from millrace.config.home import millrace_home
from millrace.core.errors import Unavailable

from .console import Console
from .stack.run_file import require_running_stack

INIT_TIMEOUT_S = 30.0


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("bus", help="prepare the message bus")
    actions = parser.add_subparsers(dest="action", required=True)
    init = actions.add_parser("init", help="make stream, consumers and buckets; safe to repeat")
    init.add_argument("--url", help="nats://host:port; default: the running stack's")
    init.add_argument("--model", action="append", default=[], help="served name; may be repeated")


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    url, models = args.url, args.model
    if not url:
        record = require_running_stack(millrace_home())
        url, models = record.endpoints["nats"], models or [record.model]
    asyncio.run(_init(url, models))
    Console().line(f"message bus at {url} is prepared")
    return 0


async def _init(url: str, models: list[str]) -> None:
    from millrace.bus.setup import init_bus

    try:
        await asyncio.wait_for(init_bus(url, models), INIT_TIMEOUT_S)
    except TimeoutError as exc:
        raise Unavailable(f"{url} did not answer within {INIT_TIMEOUT_S:g} s") from exc
