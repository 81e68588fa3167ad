"""`millrace bus init`: makes the stream, the consumers and the buckets."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from millrace.config.home import millrace_home
from millrace.config.loader import add_flags, config_from_flags
from millrace.core.errors import ConfigError, Unavailable
from millrace.core.url import NatsUrl

from .bus_config import BusConfig
from .console import Console
from .stack.run_file import require_running_stack

INIT_TIMEOUT_S = 30.0


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("bus", help="prepare the message bus")
    actions = parser.add_subparsers(dest="action", required=True)
    init = actions.add_parser(
        "init",
        help="make stream, consumers and buckets; safe to repeat",
        description="Makes stream, consumers and buckets at --nats-url, MILLRACE_BUS_NATS_URL or "
        "the running stack's server. A password belongs into the variable: arguments are seen by "
        "every user of the machine.",
    )
    init.add_argument("--url", dest="nats_url", help=argparse.SUPPRESS)
    init.add_argument(
        "--model",
        action="append",
        default=[],
        help="served name, may be repeated; default: that of the running stack",
    )
    add_flags(init, BusConfig, "bus")


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    url, models = config_from_flags(BusConfig, "bus", args).nats_url, args.model
    if url is None:
        record = require_running_stack(millrace_home())
        if "nats" not in record.endpoints:
            raise ConfigError(
                "the NATS server of the running stack is not its own; "
                "name it by MILLRACE_BUS_NATS_URL",
                field="nats_url",
            )
        url, models = NatsUrl(record.endpoints["nats"]), models or [record.model]
    asyncio.run(_init(url, models))
    Console().line(f"message bus at {url} is prepared")
    return 0


async def _init(url: NatsUrl, models: list[str]) -> None:
    from millrace.bus.setup import init_bus

    try:
        await asyncio.wait_for(init_bus(url, models), INIT_TIMEOUT_S)
    except TimeoutError as exc:
        raise Unavailable(f"{url} did not answer within {INIT_TIMEOUT_S:g} s") from exc
