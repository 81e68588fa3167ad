"""The log of requests that are not HTTP or not in time: who sent them, and why they are refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException

_log = logging.getLogger(__name__)

# A client that sends such a request sends many, and a scanner has the gateway to itself.
MIN_INTERVAL_S = 5.0


class RefusalLog:
    """One line at a time, with the number of those that were left out since."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._next_s = float("-inf")
        self._num_left_out = 0

    def note(self, client: tuple[str, int] | None, error: HTTPException) -> None:
        """Logs a refusal, or counts it for the next line."""
        now_s = self._clock_s()
        if now_s < self._next_s:
            self._num_left_out += 1
            return
        since = f" ({self._num_left_out} more since the last line)" if self._num_left_out else ""
        self._next_s = now_s + MIN_INTERVAL_S
        self._num_left_out = 0
        host, port = client or ("?", 0)
        peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        _log.warning(
            "refused a request from %s: %d, %s%s", peer, error.status_code, error.detail, since
        )
