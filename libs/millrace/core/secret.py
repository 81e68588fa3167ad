"""Values that must never be shown: in logs, errors, listings, spans or process arguments."""

from __future__ import annotations

import re

HIDDEN = "***"
# Up to the last @ before a blank: a password may hold anything that its writer did not encode.
_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(\S*)@")
_HIDDEN_ALREADY = re.compile(r"(?:[^\s@]*:)?\*\*\*")


class Secret:
    """A text whose `str` and `repr` do not tell it; `reveal` does."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for whoever must send it."""
        return self._text

    def __str__(self) -> str:
        return HIDDEN if self._text else ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.reveal() == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def redacted(text: str) -> str:
    """`text` without the user and password of any URL in it.

    For words that are not ours, such as a library's; our own never hold them.
    """
    return _CREDENTIALS.sub(_hidden, text) if "://" in text else text


def _hidden(found: re.Match[str]) -> str:
    if _HIDDEN_ALREADY.fullmatch(found.group(2)):
        return found.group()
    return f"{found.group(1)}{HIDDEN}@"
