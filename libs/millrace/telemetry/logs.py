"""One line per log record, on stderr: `HH:MM:SS.mmm level service message key=value`.

Keys come from `extra=`; `trace_id` and `span_id` are added inside a sampled span. An exception is
told by its type and place, with its message only where the message is known to be free of users'
text (our own errors, and the operating system's); the whole traceback shows at DEBUG. Control
characters are escaped, so that no text can forge a second line.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from traceback import extract_tb, format_exception
from types import TracebackType
from typing import TextIO

from opentelemetry import trace

from millrace.core.errors import ConfigError, MillraceError
from millrace.core.secret import redacted

LOG_LEVEL_VARIABLE = "MILLRACE_LOG_LEVEL"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85)} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def configure_logging(service: str, *, stream: TextIO | None = None) -> None:
    """Send every logger's records to `stream` (default stderr) as lines that name the service.

    The level is `MILLRACE_LOG_LEVEL`, INFO by default. A second call replaces the first. Raises
    ConfigError for an unknown level.
    """
    level = os.environ.get(LOG_LEVEL_VARIABLE, "INFO").upper() or "INFO"
    if level not in LEVELS:
        raise ConfigError(
            f"{LOG_LEVEL_VARIABLE} is {level!r}; it must be one of {', '.join(LEVELS)}",
            field=LOG_LEVEL_VARIABLE,
        )
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(LineFormatter(service, with_traceback=level == "DEBUG"))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, LineFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    # A closed stderr must not turn one lost line into a traceback per line.
    logging.raiseExceptions = False


class LineFormatter(logging.Formatter):
    """Formats a record as one line."""

    def __init__(self, service: str, *, with_traceback: bool = False) -> None:
        super().__init__()
        self._service = service
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline at its end."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        message = _escape(record.getMessage())
        parts = [f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {self._service} {message}"]
        parts += [
            f"{key}={_quote(value)}"
            for key, value in vars(record).items()
            if key not in _STANDARD_FIELDS and not key.startswith("_")
        ]
        parts += self._trace_ids()
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None:
            parts.append(f"error={_quote(describe_error(error))}")
            if self._with_traceback:
                parts.append(f"traceback={_quote(''.join(format_exception(error)))}")
        # Libraries name the URLs they were given.
        return redacted(" ".join(parts))

    def _trace_ids(self) -> list[str]:
        context = trace.get_current_span().get_span_context()
        if not (context.is_valid and context.trace_flags.sampled):
            return []
        return [f"trace_id={context.trace_id:032x}", f"span_id={context.span_id:016x}"]


def describe_error(error: BaseException) -> str:
    """Type, place, and the message where it cannot hold a user's text."""
    text = f"{type(error).__name__}{_place(error.__traceback__)}"
    if isinstance(error, MillraceError | OSError):
        text += f": {error}"
    return text


def _place(traceback: TracebackType | None) -> str:
    frames = extract_tb(traceback)
    if not frames:
        return ""
    filename = frames[-1].filename.replace(os.sep, "/")
    return f" at {'/'.join(filename.split('/')[-3:])}:{frames[-1].lineno}"


def _escape(text: str) -> str:
    return text.translate(_ESCAPES)


def _quote(value: object) -> str:
    text = _escape(str(value))
    if text and not any(mark in text for mark in ' "='):
        return text
    return '"' + text.replace('"', '\\"') + '"'
