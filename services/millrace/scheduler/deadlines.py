"""Which requests run out of time, earliest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush

from .sequence import LiveRequest

_SLACK = 1024


class DeadlineQueue:
    """Deadlines of live requests; those of requests that ended earlier are dropped in passing."""

    def __init__(self, requests: Mapping[str, LiveRequest]) -> None:
        self._requests = requests
        self._entries: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, request: LiveRequest) -> None:
        """Follows a live request; one without a deadline never runs out."""
        if not request.queued.deadline_unix_ms:
            return
        if len(self._entries) > 2 * len(self._requests) + _SLACK:
            self._entries = [entry for entry in self._entries if self._live(entry) is not None]
            heapify(self._entries)
        heappush(self._entries, (request.queued.deadline_unix_ms, request.request_id))

    def expired(self, now_unix_ms: int) -> Iterator[LiveRequest]:
        """Takes out the live requests whose deadline is not after `now_unix_ms`."""
        while self._entries and self._entries[0][0] <= now_unix_ms:
            request = self._live(heappop(self._entries))
            if request is not None:
                yield request

    def _live(self, entry: tuple[int, str]) -> LiveRequest | None:
        deadline_unix_ms, request_id = entry
        request = self._requests.get(request_id)
        if request is None or request.queued.deadline_unix_ms != deadline_unix_ms:
            return None
        return request
