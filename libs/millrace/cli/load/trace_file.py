"""Recorded loads: JSON lines in the format of the Mooncake traces.

Each line is an object: `timestamp` (milliseconds from the start, never falling), `input_length` and
`output_length` (tokens), `hash_ids` (one number for every 512 tokens of the input; the same numbers
at the head of two requests mean the same text at their heads).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import ConfigError

from .ask import Ask
from .prompts import BLOCK_TOKENS, prompt_of_blocks

FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One line of a trace."""

    timestamp_ms: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]

    def to_ask(self, *, speed: float = 1.0, seed: int = 0) -> Ask:
        """What to send; `speed` 2 sends it at half its time."""
        prompt = prompt_of_blocks(self.hash_ids, self.input_length, seed)
        return Ask(prompt, self.output_length, self.timestamp_ms / 1000 / speed)


def read_trace(path: Path, limit: int | None = None) -> list[TraceRequest]:
    """The first `limit` requests of a file. Raises ConfigError naming the line, and OSError."""
    with path.open(encoding="utf-8") as lines:
        requests = parse_trace(lines, limit)
    if not requests:
        raise ConfigError(f"{path}: no request in it", field="trace")
    return requests


def parse_trace(lines: Iterable[str], limit: int | None = None) -> list[TraceRequest]:
    """The requests of these lines; blank ones are skipped. Raises ConfigError naming the line."""
    requests: list[TraceRequest] = []
    for number, line in enumerate(lines, start=1):
        if limit is not None and len(requests) >= limit:
            break
        if not line.strip():
            continue
        request = _parse_line(number, line)
        if requests and request.timestamp_ms < requests[-1].timestamp_ms:
            before = requests[-1].timestamp_ms
            raise _wrong(number, f"timestamp {request.timestamp_ms:g} is before {before:g}")
        requests.append(request)
    return requests


def _parse_line(number: int, line: str) -> TraceRequest:
    try:
        entry = json.loads(line)
    except ValueError as exc:
        raise _wrong(number, f"not JSON: {exc}") from exc
    if not isinstance(entry, dict):
        raise _wrong(number, "not an object")
    missing = [name for name in FIELDS if name not in entry]
    if missing:
        raise _wrong(number, f"{missing[0]} is missing")
    timestamp_ms = entry["timestamp"]
    if not _is_number(timestamp_ms) or not 0 <= timestamp_ms < float("inf"):
        raise _wrong(number, f"timestamp {timestamp_ms!r} is not a number of milliseconds")
    for name in ("input_length", "output_length"):
        if not _is_whole(entry[name]) or entry[name] < 1:
            raise _wrong(number, f"{name} {entry[name]!r} is not a whole number of at least 1")
    hash_ids = entry["hash_ids"]
    if not isinstance(hash_ids, list) or not all(map(_is_whole, hash_ids)):
        raise _wrong(number, "hash_ids is not a list of whole numbers")
    num_tokens = entry["input_length"]
    if len(hash_ids) * BLOCK_TOKENS < num_tokens:
        room = len(hash_ids) * BLOCK_TOKENS
        raise _wrong(number, f"hash_ids stand for {room} tokens, input_length is {num_tokens}")
    return TraceRequest(timestamp_ms, num_tokens, entry["output_length"], tuple(hash_ids))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _wrong(number: int, what: str) -> ConfigError:
    return ConfigError(f"line {number} of the trace: {what}", field="trace")
