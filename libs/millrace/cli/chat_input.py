"""What is said next in a chat: a line, or several lines that are one message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from millrace.core.errors import InvalidRequest

from .console import Console
from .streams import argument_text, read_line

QUOTES = '"""'
FIRST_PROMPT = "> "
NEXT_PROMPT = ". "


@dataclass(frozen=True, slots=True)
class Entry:
    """One message or command. Text between quotes is never a command."""

    text: str
    is_quoted: bool = False

    @property
    def is_command(self) -> bool:
        """True for `/word ...`."""
        return self.text.startswith("/") and not self.is_quoted


# Gives the next line without its end, None if there is none; the argument is the prompt.
LineSource = Callable[[str], str | None]


def read_entry(next_line: LineSource) -> Entry | None:
    """The next message or command; None at the end.

    A backslash at the end of a line takes the next one in; three double quotes begin a text that
    goes on to the next three. Raises `InvalidRequest` for a message that the end cuts off.
    """
    line = next_line(FIRST_PROMPT)
    if line is None:
        return None
    if line.lstrip().startswith(QUOTES):
        return Entry(_quoted(line.lstrip().removeprefix(QUOTES), next_line), is_quoted=True)
    lines = []
    while line.endswith("\\"):
        lines.append(line[:-1])
        line = _following(next_line, "a line was to follow the backslash")
    return Entry("\n".join([*lines, line]).strip())


def _quoted(line: str, next_line: LineSource) -> str:
    lines = []
    while not line.rstrip().endswith(QUOTES):
        lines.append(line)
        line = _following(next_line, f"{QUOTES} was to follow at the end of the text")
    return "\n".join([*lines, line.rstrip().removesuffix(QUOTES)]).strip("\n")


def _following(next_line: LineSource, missing: str) -> str:
    line = next_line(NEXT_PROMPT)
    if line is None:
        raise InvalidRequest(f"the input ended within a message: {missing}")
    return line


def piped_line(prompt: str) -> str | None:
    """From standard input, without a prompt."""
    line = read_line("a line of standard input")
    return line.removesuffix("\n") if line else None


def typed_line(console: Console, prompt: str) -> str | None:
    """From the terminal, with line editing. What is no text is told and asked for again."""
    while True:
        try:
            return argument_text(input(prompt), "the message")
        except (InvalidRequest, UnicodeDecodeError) as exc:
            print(f"millrace: {exc}", file=sys.stderr)
        except EOFError:
            console.line()
            return None
