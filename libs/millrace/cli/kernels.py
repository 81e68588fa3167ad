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
    subparsers.add_parser(
        "kernels", help="build the CPU kernels, or say why plain torch runs instead"
    )


def run(args: argparse.Namespace) -> int:
    """Builds what is missing, about 10 s; nothing where it is there already."""
    console = Console()
    finding = check_kernels(millrace_home(), current_environment(), report=console.line)
    console.line(finding.text)
    if finding.advice:
        console.line(finding.advice)
    return 0
