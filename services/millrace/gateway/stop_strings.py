"""Finding stop strings in text that arrives in pieces.

Each stop string is one Knuth-Morris-Pratt automaton, advanced character by character: its state is
the length of the longest prefix of the stop string that ends the text so far. So a match is found
at the character that completes it, whatever the pieces, and the longest state says how much text
may still become part of a match and must be held back.

Special tokens have no text. A stop string that is one of them is a stop token by another name; in a
longer one each stands as one character, a mark, that also goes into the scan where the token comes.
Stop strings without that mark do not notice it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, repeat

from .special_tokens import SpecialTokens

# Lone surrogates: no decoded text has them.
_FIRST_MARK, _NUM_MARKS = 0xD800, 0x800


class StopStrings:
    """The stop strings of a request, compiled once for all its choices.

    token_ids: ids of the special tokens that are stop strings, with these. stops: all others, with
    marks. marks: by the id of the special token that each stands for. listeners: numbers of the
    stop strings for which a mark counts.
    """

    def __init__(self, stops: Sequence[str], special: SpecialTokens | None = None) -> None:
        special = special or SpecialTokens()
        own_ids = special.by_string
        self.token_ids = {own_ids[stop]: stop for stop in stops if stop in own_ids}
        self.marks: dict[int, str] = {}
        self._originals = {
            "".join(self._marked(piece, special) for piece in special.split(stop)): stop
            for stop in stops
            if stop not in own_ids
        }
        self.stops = tuple(self._originals)
        self.failures = tuple(_failure_table(stop) for stop in self.stops)
        self.everyone = range(len(self.stops))
        self.listeners = {
            mark: tuple(number for number, stop in enumerate(self.stops) if mark in stop)
            for mark in self.marks.values()
        }
        self._without_marks = str.maketrans(dict.fromkeys(self.marks.values(), ""))

    def original(self, stop: str) -> str:
        """The stop string as it was given."""
        return self._originals[stop]

    def start(self, text: str, number: int, length: int) -> int:
        """Where the last `length` characters that count for stop string `number` begin."""
        start = len(text)
        while length:
            start -= 1
            length -= number in self.listeners.get(text[start], self.everyone)
        return start

    def visible(self, text: str) -> str:
        """The text without marks."""
        return text.translate(self._without_marks)

    def _marked(self, piece: str, special: SpecialTokens) -> str:
        number = special.by_string.get(piece)
        if number is None:
            return piece
        return self.marks.setdefault(number, chr(_FIRST_MARK + len(self.marks) % _NUM_MARKS))


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
                stop = self._stop_strings.stops[matched]
                return Scan(seen[: self._stop_strings.start(seen, matched, len(stop))], stop)
        seen = self._held + text
        if self._stop_strings.marks:
            certain = min(map(self._stop_strings.start, repeat(seen), count(), self._states))
        else:
            certain = len(seen) - max(self._states)
        self._held = seen[certain:]
        return Scan(seen[:certain])

    def flush(self) -> str:
        """The text held back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> int | None:
        """The number of the longest stop string that the character completes."""
        matched: int | None = None
        stops, listeners = self._stop_strings.stops, self._stop_strings.listeners
        everyone = self._stop_strings.everyone
        for number in listeners.get(char, everyone) if listeners else everyone:
            stop = stops[number]
            failure = self._stop_strings.failures[number]
            state = self._states[number]
            while state and stop[state] != char:
                state = failure[state - 1]
            if stop[state] == char:
                state += 1
            if state == len(stop):
                state = failure[state - 1]
                if matched is None or len(stop) > len(stops[matched]):
                    matched = number
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
