"""What the foreground `up` shows of its processes: one prefixed, coloured line at a time."""

from __future__ import annotations

import time

from millrace.cli.console import Console
from millrace.telemetry.log_line import JSON, iso_time, log_format, log_line

PREFIX_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")
OWN_NAME = "millrace"


class StackView:
    """Prefixes lines with the process name; can hold them back while something else is shown.

    Lines in JSON name their process themselves, and stay whole for whoever reads them.
    """

    def __init__(self, console: Console, names: list[str], *, quiet: frozenset[str]) -> None:
        self._console = console
        self._width = max(len(name) for name in (OWN_NAME, *names))
        self._colours = {
            name: PREFIX_COLOURS[index % len(PREFIX_COLOURS)] for index, name in enumerate(names)
        }
        self._quiet = quiet
        self._held: list[str] | None = None
        self._is_json = log_format() == JSON

    def show(self, name: str, line: str) -> None:
        """One line that a process printed; those of quiet processes are only in their logs."""
        if name not in self._quiet:
            self._line(name, line, self._colours.get(name, "grey"))

    def note(self, message: str) -> None:
        """One line about the stack itself."""
        if self._is_json:
            self._line(OWN_NAME, log_line(OWN_NAME, message), "bold")
        else:
            self._line(OWN_NAME, f"{iso_time(time.time())} {message}", "bold")

    def hold(self) -> None:
        """Keeps lines back until `release`."""
        self._held = []

    def release(self) -> None:
        """Shows what was held back, and everything from now on."""
        held, self._held = self._held or [], None
        for line in held:
            self._console.line(line)

    def _line(self, name: str, text: str, colour: str) -> None:
        line = text
        if not self._is_json:
            line = f"{self._console.paint(name.ljust(self._width) + ' |', colour)} {text}"
        if self._held is None:
            self._console.line(line)
        else:
            self._held.append(line)
