"""How the `millrace` command is typed here, for every hint that names one."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

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
        return f"{shlex.quote(_shown(Path(sys.executable)))} -m millrace.cli"
    found = shutil.which(NAME)
    if found is not None and _is_same(Path(found), script):
        return NAME
    return shlex.quote(_shown(script))


def _script() -> Path | None:
    """The script that was started, else the one beside the interpreter: services have no other."""
    started = Path(sys.argv[0] if sys.argv else "")
    beside = Path(sys.executable).parent / NAME
    candidates = [started, beside] if started.name == NAME else [beside]
    return next((path.absolute() for path in candidates if path.is_file()), None)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _shown(path: Path) -> str:
    """Below the working directory as a path from there, which is what one types."""
    try:
        here = Path.cwd()
    except OSError:
        return str(path)
    if not path.is_relative_to(here):
        return str(path)
    near = str(path.relative_to(here))
    # A bare name would be looked for on the PATH.
    return near if "/" in near else f"./{near}"
