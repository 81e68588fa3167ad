"""The last request that `generate` or `chat` made on the stack of this home, for `trace --last`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass

from millrace.config.home import Home

FILE_NAME = "last-request.json"


@dataclass(frozen=True, slots=True)
class LastRequest:
    """Its id, and when its answer was over here."""

    request_id: str
    ended_unix_s: float


def note_request(home: Home, request_id: str) -> None:
    """Writes it down; a home that cannot be written to costs nothing but this."""
    path = home.run / FILE_NAME
    fresh = path.with_name(f"{FILE_NAME}.{os.getpid()}")
    with contextlib.suppress(OSError):
        fresh.write_text(json.dumps(asdict(LastRequest(request_id, time.time()))), encoding="utf-8")
        fresh.replace(path)


def last_request(home: Home) -> LastRequest | None:
    """None if none was made, or what is written makes no sense."""
    try:
        document = json.loads((home.run / FILE_NAME).read_text(encoding="utf-8"))
        return LastRequest(str(document["request_id"]), float(document["ended_unix_s"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
