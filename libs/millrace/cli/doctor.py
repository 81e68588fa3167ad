"""`millrace doctor`: checks this machine and the stack, and says what to do."""

from __future__ import annotations

import argparse
from typing import Any

from millrace.config.environment import current_environment

from .checkup import Finding, examine
from .console import Console

ADVICE_INDENT = " " * 6
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("doctor", help="check this machine and the stack")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """1 where a check fails; warnings do not count."""
    console = Console()
    findings = examine(current_environment())
    if args.json:
        console.json([_report(item) for item in findings])
    else:
        for item in findings:
            level = item.level.ljust(len(ADVICE_INDENT))
            console.prose(item.text, indent=level, indent_colour=COLOURS[item.level])
            if item.advice:
                console.prose(item.advice, indent=ADVICE_INDENT)
    return 1 if any(item.level == "fail" for item in findings) else 0


def _report(item: Finding) -> dict[str, str]:
    return {"check": item.check, "level": item.level, "text": item.text, "advice": item.advice}
