"""`millrace version`."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import Any

from .console import Console


def millrace_version() -> str:
    """The installed version."""
    return importlib.metadata.version("millrace")


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("version", help="show the version")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """Shows the versions of Millrace and Python."""
    if args.json:
        Console().json({"millrace": millrace_version(), "python": platform.python_version()})
    else:
        Console().line(f"millrace {millrace_version()} (Python {platform.python_version()})")
    return 0
