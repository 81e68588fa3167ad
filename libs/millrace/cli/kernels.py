"""`millrace kernels`: builds the C++ kernels for this machine and says which path they take."""

from __future__ import annotations

import argparse
from typing import Any

from millrace.config.environment import current_environment
from millrace.config.home import millrace_home

from .checkup import check_kernels
from .console import Console


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "kernels", help="build the CPU kernels, or say why plain torch runs instead"
    )
    parser.add_argument(
        "--all-paths",
        action="store_true",
        help="for images: build them for every CPU of this architecture, into the installed "
        "package, so that it runs without a compiler",
    )


def run(args: argparse.Namespace) -> int:
    """Builds what is missing, about 10 s a path; nothing where it is there already."""
    console = Console()
    if args.all_paths:
        return _ship(console)
    finding = check_kernels(millrace_home(), current_environment(), report=console.line)
    console.prose(finding.text)
    if finding.advice:
        console.prose(finding.advice)
    return 0


def _ship(console: Console) -> int:
    from millrace.engine.kernels.cpu.build import ship_library
    from millrace.engine.kernels.cpu.instruction_paths import paths_of_machine

    for path in paths_of_machine():
        console.line(f"CPU kernels: {ship_library(path, console.line)}")
    return 0
