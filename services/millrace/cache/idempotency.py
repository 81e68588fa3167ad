"""Which request holds an idempotency key. Never guesses: without the store every call fails."""

from __future__ import annotations

from typing import Protocol

from millrace.core.errors import InvalidRequest

from .guard import StoreGuard
from .responses import checked_key

FINISHED_TTL_S = 24 * 3600.0
MAX_HOLD_S = 24 * 3600.0


class KeyStore(Protocol):
    """What the keys need of a store; see `RedisStore`."""

    async def claim(self, key: str, holder: str, record: bytes, ttl_ms: int) -> bytes | None:
        """None where the key is the holder's now, else the record that has it."""
        ...

    async def finish(self, key: str, holder: str, record: bytes, ttl_ms: int) -> bool:
        """False where the key is another's."""
        ...

    async def free(self, key: str, holder: str) -> bool:
        """False where the holder does not have it."""
        ...


class IdempotencyKeys:
    """Records are opaque bytes here. Raises Unavailable while the store is out of reach.

    A claim ends by itself after its hold time: its gateway may have died. What has finished is
    kept for `finished_ttl_s`.
    """

    def __init__(
        self, store: KeyStore, guard: StoreGuard, *, finished_ttl_s: float = FINISHED_TTL_S
    ) -> None:
        self._store = store
        self._guard = guard
        self._finished_ttl_ms = round(finished_ttl_s * 1000)

    async def claim(self, key: bytes, request_id: str, record: bytes, hold_ms: int) -> bytes | None:
        """Takes a free key, None then; else the record that has it."""
        limit_ms = round(MAX_HOLD_S * 1000)
        if not 1 <= hold_ms <= limit_ms:
            raise InvalidRequest(
                f"hold_ms is {hold_ms}; allowed are 1 to {limit_ms}", field="hold_ms"
            )
        call = self._store.claim(_name(key), _checked_id(request_id), record, hold_ms)
        return await self._guard.detached(self._guard.call("claim", call))

    async def finish(self, key: bytes, request_id: str, record: bytes) -> bool:
        """Keeps the record of a request that ended well; False where the key is another's."""
        call = self._store.finish(
            _name(key), _checked_id(request_id), record, self._finished_ttl_ms
        )
        return await self._guard.detached(self._guard.call("finish", call))

    async def free(self, key: bytes, request_id: str) -> bool:
        """Gives a key back; False where the request does not hold it."""
        call = self._store.free(_name(key), _checked_id(request_id))
        return await self._guard.detached(self._guard.call("free", call))


def _name(key: bytes) -> str:
    return checked_key(key).hex()


def _checked_id(request_id: str) -> str:
    if not request_id:
        raise InvalidRequest("request_id is missing", field="request_id")
    return request_id
