"""`millrace config show`: every setting with its value and where it comes from."""

from __future__ import annotations

import argparse
import difflib
from typing import Any

from millrace.config.loader import SettingValue, check_variables, explain_config
from millrace.core.errors import ConfigError

from .console import Console
from .service_settings import explain_service
from .stack.topology import load_topology
from .up_config import UpConfig


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("config", help="show settings with value and origin")
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="show settings with value and origin")
    show.add_argument("service", nargs="?", help="up or a service; default: all")
    show.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """Shows the settings in force outside a running stack: `up` sets addresses itself."""
    check_variables()
    topology, console = load_topology(), Console()
    services = ["up", *(spec.name for spec in topology.processes if spec.config)]
    if args.service and args.service not in services:
        nearest = difflib.get_close_matches(args.service, services, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown service {args.service}; did you mean {nearest}?")
    chosen = [args.service] if args.service else services
    found = {}
    for service in chosen:
        if service == "up":
            found[service] = explain_config(UpConfig, "up")
        else:
            found[service] = list(explain_service(topology, service).values())
    if args.json:
        console.json({service: [_report(item) for item in found[service]] for service in chosen})
        return 0
    for service in chosen:
        console.line(console.paint(f"[{service}]", "bold"))
        rows = [[item.name, _shown(item), item.origin, item.env] for item in found[service]]
        console.table(["setting", "value", "origin", "variable"], rows)
        console.line()
    return 0


def _shown(item: SettingValue) -> str:
    text = item.text or '""'
    return f"{text} {item.unit}" if item.unit and item.value is not None else text


def _report(item: SettingValue) -> dict[str, Any]:
    value = item.text if item.is_secret else item.value
    is_plain = value is None or isinstance(value, bool | int | float | str)
    if isinstance(value, tuple):
        value = list(value)
    elif not is_plain:
        value = str(value)
    return {
        "name": item.name,
        "value": value,
        "origin": item.origin,
        "variable": item.env,
        "flag": item.flag,
        "unit": item.unit,
        "help": item.help,
    }
