"""Log records as lines on stderr; see `log_line.py` for what they look like.

Keys come from `extra=`; `trace_id` and `span_id` are added inside a sampled span. An exception is
told by its type and place, with its message only where the message is known to be free of users'
text (our own errors, and the operating system's); the whole traceback shows at DEBUG. Control
characters are escaped, so that no text can forge a second line.
"""

from __future__ import annotations

import logging
import os
import sys
from traceback import extract_tb, format_exception
from types import TracebackType
from typing import Any, TextIO

from opentelemetry import trace

from millrace.core.errors import ConfigError, MillraceError
from millrace.core.secret import redacted

from .log_line import TEXT, log_format, make_line

LOG_LEVEL_VARIABLE = "MILLRACE_LOG_LEVEL"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# Ours, also in the module that `python -m` runs. The libraries beneath tell their troubles only:
# at DEBUG they would drown everything else, and nobody asked for them.
OUR_LOGGERS = ("millrace", "__main__")
LEAST_OF_OTHERS = logging.WARNING

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(service: str, *, stream: TextIO | None = None) -> None:
    """Send every logger's records to `stream` (default stderr) as lines that name the service.

    Our level is `MILLRACE_LOG_LEVEL`, INFO by default; the format is `MILLRACE_LOG_FORMAT`, text
    or json. A second call replaces the first. Raises ConfigError for an unknown level or format.
    """
    level = os.environ.get(LOG_LEVEL_VARIABLE, "INFO").upper() or "INFO"
    if level not in LEVELS:
        raise ConfigError(
            f"{LOG_LEVEL_VARIABLE} is {level!r}; it must be one of {', '.join(LEVELS)}",
            field=LOG_LEVEL_VARIABLE,
        )
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(
        LineFormatter(service, style=log_format(), with_traceback=level == "DEBUG")
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, LineFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(logging.getLevelNamesMapping()[level], LEAST_OF_OTHERS))
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(level)
    # A closed stderr must not turn one lost line into a traceback per line.
    logging.raiseExceptions = False


class LineFormatter(logging.Formatter):
    """Formats a record as one line."""

    def __init__(self, service: str, *, style: str = TEXT, with_traceback: bool = False) -> None:
        super().__init__()
        self._service = service
        self._format = style
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline at its end."""
        fields = {
            key: value
            for key, value in vars(record).items()
            if key not in _STANDARD_FIELDS and not key.startswith("_")
        }
        self._add_trace_ids(fields)
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None:
            fields["error"] = describe_error(error)
            if self._with_traceback:
                fields["traceback"] = "".join(format_exception(error))
        # Libraries name the URLs they were given.
        return make_line(
            self._format,
            record.created,
            record.levelname,
            self._service,
            redacted(record.getMessage()),
            {key: _redacted(value) for key, value in fields.items()},
        )

    def _add_trace_ids(self, fields: dict[str, Any]) -> None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid and context.trace_flags.sampled and "trace_id" not in fields:
            fields["trace_id"] = f"{context.trace_id:032x}"
            fields["span_id"] = f"{context.span_id:016x}"


def _redacted(value: Any) -> Any:
    is_number = value is None or isinstance(value, int | float)
    return value if is_number else redacted(str(value))


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
