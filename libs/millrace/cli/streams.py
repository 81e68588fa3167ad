"""The standard streams: none that is missing or that a letter can break, and text that is UTF-8."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from typing import IO

from millrace.core.errors import InvalidRequest

# What the gateway takes as the body of a request.
MAX_INPUT_BYTES = 8 << 20


def prepare_streams() -> None:
    """Output shows as an escape what the terminal's encoding lacks; closed streams are replaced."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8"))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def give_up(stream: IO[str]) -> None:
    """Lets nothing more be written where nobody reads, not at the end of the process either."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        # No file behind it: a test's stream.
        return


def is_utf8(stream: IO[str]) -> bool:
    """True if every letter can be written there; also for a stream in memory."""
    encoding = getattr(stream, "encoding", None)
    return not encoding or codecs.lookup(encoding).name == "utf-8"


def tell_if_waiting(seconds: float, note: str) -> None:
    """Writes `note` to stderr if nothing comes on stdin for so long, not even its end."""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
    except (OSError, ValueError):
        # A test's stream, or a file of a kind that is always ready.
        return
    if not ready:
        print(note, file=sys.stderr, flush=True)


def read_text(what: str) -> str:
    """All of stdin. Raises `InvalidRequest` if it is too long, or for the first byte of no text."""
    buffer = getattr(sys.stdin, "buffer", None)
    data = sys.stdin.read().encode() if buffer is None else buffer.read(MAX_INPUT_BYTES + 1)
    return _decoded(data, what)


def read_line(what: str) -> str:
    """The next line of stdin with its end; empty at the end. Raises as `read_text` does."""
    buffer = getattr(sys.stdin, "buffer", None)
    data = sys.stdin.readline().encode() if buffer is None else buffer.readline(MAX_INPUT_BYTES + 1)
    return _decoded(data, what)


def argument_text(text: str, what: str) -> str:
    """An argument that is text, not a path. Raises `InvalidRequest` if its bytes are not UTF-8.

    Python keeps bytes that it cannot decode as lone surrogates, and in the C locale without its
    UTF-8 mode every byte beyond ASCII.
    """
    return _utf8(text.encode("utf-8", "surrogateescape"), what)


def _decoded(data: bytes, what: str) -> str:
    if len(data) > MAX_INPUT_BYTES:
        raise InvalidRequest(f"{what} is longer than {MAX_INPUT_BYTES} bytes")
    name = codecs.lookup(sys.stdin.encoding or "utf-8").name
    text = _utf8(data, what) if name in ("ascii", "utf-8") else data.decode(name, "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{what} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}"
        ) from error
