"""A line of a log, as text or as JSON, with the time in ISO 8601 and its zone.

    2026-03-01T09:30:00.250+01:00 INFO    gateway message key=value
    {"time":"2026-03-01T09:30:00.250+01:00","level":"INFO","service":"gateway","message":"message","key":"value"}

Every line of a process gets here sooner or later: those of our loggers by `logs.py`, those that are
printed on purpose by `log_line`, and whatever else a process prints, a foreign server's lines and
tracebacks say, by `stamped` in the supervisor.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from millrace.core.errors import ConfigError

LOG_FORMAT_VARIABLE = "MILLRACE_LOG_FORMAT"
TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)

_STAMP = re.compile(r'(?:\{"time":")?(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d)[ "]')
# Printable ASCII without a space, a quotation mark or an equals sign: most values, in one look.
_PLAIN = re.compile(r"[!#-<>-~]+")
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85)} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def log_format() -> str:
    """`MILLRACE_LOG_FORMAT`, text by default. Raises ConfigError for another word."""
    named = os.environ.get(LOG_FORMAT_VARIABLE, "").lower() or TEXT
    if named not in FORMATS:
        raise ConfigError(
            f"{LOG_FORMAT_VARIABLE} is {named!r}; it must be one of {', '.join(FORMATS)}",
            field=LOG_FORMAT_VARIABLE,
        )
    return named


def log_line(service: str, message: str, level: str = "INFO") -> str:
    """A line of now in the format of the environment."""
    return make_line(log_format(), time.time(), level, service, message, {})


def stamped(service: str, line: str) -> str:
    """A line that a process has printed, as it is if it has a time, else as one of now."""
    return line if _STAMP.match(line) else log_line(service, line)


def time_of(line: str) -> float | None:
    """Unix time of a line; None if it does not begin with one."""
    found = _STAMP.match(line)
    return datetime.fromisoformat(found[1]).timestamp() if found else None


def make_line(
    style: str,
    unix_s: float,
    level: str,
    service: str,
    message: str,
    fields: Mapping[str, Any],
) -> str:
    """One line, without a newline at its end."""
    if style == JSON:
        document = {
            "time": iso_time(unix_s),
            "level": level,
            "service": service,
            "message": message,
        }
        for key, value in fields.items():
            document.setdefault(key, value)
        # All of it is ASCII: neither a control character nor half a surrogate gets out.
        return json.dumps(document, separators=(",", ":"), default=str)
    parts = [f"{iso_time(unix_s)} {level:<7} {service} {message.translate(_ESCAPES)}"]
    parts += [f"{key}={_quote(value)}" for key, value in fields.items()]
    return " ".join(parts)


class _Clock:
    """Formats the time; date and zone change once a second at the most."""

    def __init__(self) -> None:
        self._second = -1
        self._head = self._zone = ""

    def iso(self, unix_s: float) -> str:
        milliseconds = int(unix_s * 1000)
        second = milliseconds // 1000
        if second != self._second:
            local = time.localtime(second)
            zone = time.strftime("%z", local)
            self._head = time.strftime("%Y-%m-%dT%H:%M:%S", local)
            self._zone = f"{zone[:3]}:{zone[3:5]}"
            self._second = second
        return f"{self._head}.{milliseconds % 1000:03d}{self._zone}"


def iso_time(unix_s: float) -> str:
    """Local time to the millisecond, with its offset from UTC."""
    return _CLOCK.iso(unix_s)


_CLOCK = _Clock()


def _quote(value: object) -> str:
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    text = text.translate(_ESCAPES)
    if text and not any(mark in text for mark in ' "='):
        return text
    return '"' + text.replace('"', '\\"') + '"'
