"""Finding stop strings in text that arrives in pieces.

Each stop string is one Knuth-Morris-Pratt automaton, advanced character by character: its state is
the length of the longest prefix of the stop string that ends the text so far. So a match is found
at the character that completes it, whatever the pieces, and the longest state says how much text
may still become part of a match and must be held back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class StopStrings:
    """The stop strings of a request, compiled once for all its choices."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(dict.fromkeys(stops))
        self.failures = tuple(_failure_table(stop) for stop in self.stops)


@dataclass(frozen=True, slots=True)
class Scan:
    """Text that is certain now, and the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class StopScanner:
    """The scan of one choice's text."""

    def __init__(self, stop_strings: StopStrings) -> None:
        self._stop_strings = stop_strings
        self._states = [0] * len(stop_strings.stops)
        self._held = ""

    def copy(self) -> StopScanner:
        """A scan that goes on from here on its own."""
        twin = StopScanner(self._stop_strings)
        twin._states = list(self._states)
        twin._held = self._held
        return twin

    def feed(self, text: str, *, can_stop: bool = True) -> Scan:
        """Takes more text; gives what cannot be part of a match any more.

        The match that is complete first wins, and the longest of those complete at once: the
        same one however the text is cut. With `can_stop` false a match inside `text` is let pass.
        """
        if not self._states or not text:
            return Scan(text)
        for index, char in enumerate(text):
            matched = self._advance(char)
            if matched is not None and can_stop:
                seen = self._held + text[: index + 1]
                self._held = ""
                return Scan(seen[: len(seen) - len(matched)], matched)
        seen = self._held + text
        certain = len(seen) - max(self._states)
        self._held = seen[certain:]
        return Scan(seen[:certain])

    def flush(self) -> str:
        """The text held back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> str | None:
        matched: str | None = None
        for number, stop in enumerate(self._stop_strings.stops):
            failure = self._stop_strings.failures[number]
            state = self._states[number]
            while state and stop[state] != char:
                state = failure[state - 1]
            if stop[state] == char:
                state += 1
            if state == len(stop):
                state = failure[state - 1]
                if matched is None or len(stop) > len(matched):
                    matched = stop
            self._states[number] = state
        return matched


def _failure_table(stop: str) -> tuple[int, ...]:
    """Entry i: length of the longest proper prefix of stop[:i+1] that is also its suffix."""
    table = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = table[length - 1]
        if stop[index] == stop[length]:
            length += 1
        table[index] = length
    return tuple(table)
