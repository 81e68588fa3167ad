"""Finding any of many strings in a text."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable
from itertools import groupby


def match_any(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the leftmost, longest occurrence of any of `strings`, if there is any.

    Built along the common prefixes: a plain alternation of thousands of strings that all start
    with "<" would be tried one by one at every "<" of the text.
    """
    ordered = sorted({string for string in strings if string})
    return re.compile(_pattern(ordered) if ordered else "(?!)")


def _pattern(ordered: list[str]) -> str:
    prefix = os.path.commonprefix(ordered)
    rests = [string[len(prefix) :] for string in ordered]
    branches = [_pattern(list(group)) for _, group in groupby(filter(None, rests), _first)]
    if not branches:
        return re.escape(prefix)
    suffix = f"(?:{'|'.join(branches)})"
    # The shortest string sorts first: where it is the prefix itself, the rest is optional.
    return re.escape(prefix) + (suffix if rests[0] else f"{suffix}?")


def _first(string: str) -> str:
    return string[0]
