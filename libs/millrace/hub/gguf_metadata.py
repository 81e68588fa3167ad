"""The keys of a GGUF file, each read as what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from millrace.core.errors import UnsupportedModel

from .gguf_header import GgufHeader, shown

# What other readers keep such numbers in.
_MOST = (1 << 31) - 1
# Beyond these, the numbers of float32.
_LEAST_FLOAT, MOST_FLOAT = 2.0**-126, 2.0**127


class GgufMetadata:
    """Keys and values of one file.

    Every method raises UnsupportedModel, naming file, key and value, for a value of another type
    or out of range; without a default also for a missing key. A null default gives None.
    """

    def __init__(self, header: GgufHeader) -> None:
        self._header = header

    @property
    def path(self) -> Path:
        """The file that they are of."""
        return self._header.path

    def __contains__(self, key: object) -> bool:
        return key in self._header.entries

    def value(self, key: str) -> Any:
        """Whatever the key says."""
        if key not in self:
            raise self.fault(f"GGUF key {shown(key)} is missing")
        return self._header.value(key)

    def whole(self, key: str, *, least: int = 0, most: int = _MOST) -> int:
        """A whole number."""
        value = self.value(key)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"no whole number from {least} to {most}")
        return value

    def try_whole(self, key: str, *, least: int = 0, most: int = _MOST) -> int | None:
        """`whole`, or None where the key is missing."""
        return self.whole(key, least=least, most=most) if key in self else None

    def positive(self, key: str, below: float = MOST_FLOAT) -> float:
        """A number between 0 and `below`, neither included."""
        value = self.value(key)
        if type(value) is not float or not _LEAST_FLOAT <= value < below:
            raise self.wrong(key, f"no number over 0 and below {below:g}")
        return value

    def try_text(self, key: str) -> str | None:
        """A text, or None where the key is missing."""
        if key not in self:
            return None
        value = self.value(key)
        if not isinstance(value, str):
            raise self.wrong(key, "no text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.value(key) if key in self else default
        if not isinstance(value, bool):
            raise self.wrong(key, "neither true nor false")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "no list of texts")
        return value

    def try_wholes(self, key: str, count: int) -> list[int] | None:
        """A list of `count` whole numbers, or None where the key is missing."""
        return self._list_of(key, count, int, "whole numbers")

    def try_fractions(self, key: str, count: int) -> list[float] | None:
        """A list of `count` fractions, or None where the key is missing."""
        return self._list_of(key, count, float, "fractions")

    def fault(self, what: str) -> UnsupportedModel:
        """The error to raise; it names the file."""
        return self._header.fault(what)

    def wrong(self, key: str, what: str) -> UnsupportedModel:
        """The error to raise for the value of a key."""
        return self.fault(f"GGUF key {key!r} is {shown(self.value(key))}, {what}")

    def _list_of(self, key: str, count: int, kind: type, what: str) -> list[Any] | None:
        if key not in self:
            return None
        value = self.value(key)
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise self.wrong(key, f"no list of {what}")
        if len(value) != count:
            raise self.fault(f"GGUF key {key!r} has {len(value)} items for {count} tokens")
        return value
