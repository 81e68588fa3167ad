"""What is kept of a command that failed in a way that nobody foresaw."""

from __future__ import annotations

import re
import sys
import time
import traceback
from pathlib import Path

from millrace.config.environment import current_environment
from millrace.config.home import millrace_home
from millrace.config.replaced_file import replace_file
from millrace.core.errors import MillraceError
from millrace.core.secret import HIDDEN, redacted

FILE_NAME = "crash.txt"
# Shorter ones would hide half of every text.
MIN_PIECE_CHARS = 4


def shown_traceback(error: BaseException) -> str:
    """The traceback without passwords."""
    return without_secrets("".join(traceback.format_exception(error)))


def without_secrets(text: str) -> str:
    """Without what looks like a password, and without every piece of those that we were given.

    A library that cannot read a URL may quote any piece of it.
    """
    given = [*current_environment().values(), *sys.argv]
    pieces = {piece for value in given if "://" in value for piece in _pieces(value)}
    text = redacted(text)
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, HIDDEN)
    return text


def _pieces(url: str) -> list[str]:
    """Of user and password, the parts between the marks at which URLs are split."""
    userinfo, at, _ = url.partition("://")[2].rpartition("@")
    pieces = re.split(r"[#/?:@\s]", userinfo) if at else []
    return [piece for piece in pieces if len(piece) >= MIN_PIECE_CHARS]


def keep_traceback(error: BaseException, verb: str) -> Path | None:
    """Writes it to the logs, over the last one; None if it cannot be written."""
    try:
        path = millrace_home().logs / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        head = f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} millrace {verb}\n"
        replace_file(path, head + shown_traceback(error))
    except (MillraceError, OSError):
        return None
    return path
