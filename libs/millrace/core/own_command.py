"""How the `millrace` command is typed here, for every hint that names one.

Without pathlib, whose import would be a tenth of what `millrace --help` takes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys

NAME = "millrace"


def own_command(arguments: str = "") -> str:
    """The command that does `arguments`, such as `up --detach`, typed where this process was begun.

    `millrace …` if that is what a shell finds, else the path of the script in use:
    `.venv/bin/millrace …`.
    """
    return f"{_program()} {arguments}".rstrip()


def _program() -> str:
    script = _script()
    if script is None:
        # Never installed as a script, as in a source tree on PYTHONPATH.
        return f"{shlex.quote(_shown(sys.executable))} -m millrace.cli"
    found = shutil.which(NAME)
    if found is not None and _is_same(found, script):
        return NAME
    return shlex.quote(_shown(script))


def _script() -> str | None:
    """The script that was started, else the one beside the interpreter: services have no other."""
    started = sys.argv[0] if sys.argv else ""
    beside = os.path.join(os.path.dirname(sys.executable), NAME)
    candidates = [started, beside] if os.path.basename(started) == NAME else [beside]
    return next((os.path.abspath(path) for path in candidates if os.path.isfile(path)), None)


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _shown(path: str) -> str:
    """Below the working directory as a path from there, which is what one types."""
    try:
        here = os.path.join(os.getcwd(), "")
    except OSError:
        return path
    if not path.startswith(here):
        return path
    near = path.removeprefix(here)
    # A bare name would be looked for on the PATH.
    return near if os.sep in near else os.path.join(os.curdir, near)
