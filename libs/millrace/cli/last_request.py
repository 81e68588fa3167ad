"""The last request that `generate` or `chat` made on the stack of this home, for `trace --last`."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass

from millrace.config.home import Home
from millrace.config.replaced_file import replace_file

FILE_NAME = "last-request.json"


@dataclass(frozen=True, slots=True)
class LastRequest:
    """Its id, and when its answer was over here."""

    request_id: str
    ended_unix_s: float


def note_request(home: Home, request_id: str) -> None:
    """Writes it down; a home that cannot be written to costs nothing but this."""
    with contextlib.suppress(OSError):
        request = LastRequest(request_id, time.time())
        replace_file(home.run / FILE_NAME, json.dumps(asdict(request)))


def last_request(home: Home) -> LastRequest | None:
    """None if none was made, or what is written makes no sense."""
    try:
        document = json.loads((home.run / FILE_NAME).read_text(encoding="utf-8"))
        return LastRequest(str(document["request_id"]), float(document["ended_unix_s"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
