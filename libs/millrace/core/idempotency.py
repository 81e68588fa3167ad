"""What is known of the request behind an idempotency key."""

from __future__ import annotations

from dataclasses import dataclass

from .answer import CachedAnswer


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """`body_hash` is over the canonical request; `answer` is None where it cannot be replayed."""

    body_hash: bytes
    request_id: str
    gateway_id: str
    is_finished: bool = False
    model: str = ""
    revision: str = ""
    seed: int = 0
    answer: CachedAnswer | None = None
