"""Installs this tree with some of its extras into the environment of the Python that runs it.

Runs before anything is installed, so what it imports of ours needs nothing but Python.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "libs"))

from millrace.cli.pip_install import pip_install  # noqa: E402
from millrace.core.errors import MillraceError  # noqa: E402

LOG = "install.log"


def main(extras: str, options: list[str]) -> int:
    """`extras` and `options` as pip takes them. The log lies in the environment."""
    log = Path(sys.prefix) / LOG
    wanted = ["--editable", f"{ROOT}[{extras}]", *options]
    try:
        pip_install(Path(sys.executable), wanted, log, os.environ)
    except MillraceError as error:
        print(f"cannot install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
