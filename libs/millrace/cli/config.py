"""`millrace config`: every setting with its value and origin, and a settings file to begin with."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from millrace.config.environment import current_environment
from millrace.config.home import Home, millrace_home
from millrace.config.loader import SettingValue, check_variables
from millrace.config.replaced_file import replace_file
from millrace.core.errors import ConfigError, Conflict

from .console import Console
from .service_settings import explain_service, settings_names
from .settings_document import toml_document
from .stack.run_file import require_running_stack
from .stack.settings_file import read_settings_file
from .stack.topology import Topology, load_topology

Report = dict[str, Any]


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("config", help="show settings with value and origin")
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="show settings with value and origin")
    show.add_argument("service", nargs="?", help="up, bus or a service; default: all")
    show.add_argument(
        "--config",
        metavar="FILE",
        help="settings file to read; default: config.toml in MILLRACE_HOME",
    )
    show.add_argument("--running", action="store_true", help="what the running stack got")
    show.add_argument("--json", action="store_true", help="for machines")
    init = actions.add_parser("init", help="write a settings file with everything commented out")
    init.add_argument("--output", metavar="FILE", help="default: config.toml in MILLRACE_HOME")
    init.add_argument("--force", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    if args.action == "init":
        return _init(args, millrace_home())
    reports = _running(args) if args.running else _outside(args)
    console = Console()
    if args.json:
        console.json(reports)
        return 0
    for name, settings in reports.items():
        _show(console, name, settings)
    return 0


def report_settings(
    settings: Mapping[str, SettingValue], given: Collection[str] = ()
) -> list[Report]:
    """For machines, without passwords. Variables in `given` come from `up`, not from the user."""
    return [_report(item, given) for item in settings.values()]


def _outside(args: argparse.Namespace) -> dict[str, list[Report]]:
    """The settings in force for processes that are started now; `up` sets addresses itself."""
    environ = current_environment()
    if args.config:
        environ["MILLRACE_CONFIG"] = args.config
    check_variables(environ)
    topology = load_topology()
    names = _chosen(args.service, settings_names(topology))
    every = {name: explain_service(topology, name, environ) for name in names}
    reports = {name: report_settings(settings) for name, settings in every.items()}
    for report in reports.get("up", []):
        _inherit(report, topology, environ)
    return reports


def _running(args: argparse.Namespace) -> dict[str, list[Report]]:
    home = millrace_home()
    require_running_stack(home)
    settings = read_settings_file(home)
    return {name: settings[name] for name in _chosen(args.service, list(settings))}


def _chosen(service: str | None, known: list[str]) -> list[str]:
    if service is None:
        return known
    if service not in known:
        nearest = difflib.get_close_matches(service, known, n=1, cutoff=0.0)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ConfigError(f"unknown service {service}{hint}")
    return [service]


def _inherit(report: Report, topology: Topology, environ: Mapping[str, str]) -> None:
    """Shows what holds instead of a setting of `up` that was not given."""
    if report["inherits"] and report["value"] is None:
        table, _, name = report["inherits"].partition(".")
        held = explain_service(topology, table, environ)[name]
        report["effective"] = _plain(held.value)


def _report(item: SettingValue, given: Collection[str]) -> Report:
    return {
        "name": item.name,
        "value": _plain(item.value),
        "effective": _plain(item.value),
        "origin": "up" if item.origin == "env" and item.env in given else item.origin,
        "variable": item.env,
        "flag": item.flag,
        "unit": item.doc.unit,
        "help": item.doc.help,
        "choices": list(item.doc.choices),
        "unset": item.doc.unset if item.is_unset else "",
        "inherits": item.doc.inherits,
    }


def _plain(value: Any) -> Any:
    """As JSON has it; what may be secret as the text that hides it."""
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _show(console: Console, name: str, settings: list[Report]) -> None:
    prefix = settings[0]["variable"].removesuffix(settings[0]["name"].upper())
    console.line(console.paint(f"[{name}]", "bold") + f"  variables {prefix}<SETTING>")
    for item in settings:
        console.prose(f"{_shown(item)}  [{item['origin']}]", indent=f"{item['name']:<24} ")
        choices = f" (one of {', '.join(item['choices'])})" if item["choices"] else ""
        console.prose(f"{item['help']}{choices}", indent="    ", colour="grey")
    console.line()


def _shown(item: Report) -> str:
    value = item["effective"]
    if item["unset"]:
        return str(item["unset"])
    if item["inherits"] and item["value"] is None:
        return f"{_text(value)} ({item['inherits']})"
    return f"{_text(value)} {item['unit']}".rstrip()


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value) or '""'


def _init(args: argparse.Namespace, home: Home) -> int:
    path = Path(args.output) if args.output else home.config_file
    if path.exists() and not args.force:
        raise Conflict(f"{path} is there already; --force replaces it")
    text = toml_document(load_topology())
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
    Console().line(f"{path}: every setting, commented out")
    return 0
