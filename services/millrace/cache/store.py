"""Bounded key-value store in Redis: the one file that talks to it.

Every value has a time to live; all values together stay under a cap, the one that would expire
first going first. The accounting lies in Redis, so it holds for several cache processes: a sorted
set of the keys by expiry and a hash of their sizes with the total, both changed only inside one
script together with the values.

    mr:v1:resp:<key>    a value           mr:v1:resp-expiry   key -> expiry, unix ms
                                          mr:v1:resp-size     key -> bytes; "" -> bytes of all

Idempotency keys lie beside them, outside of the cap, each with a time to live of its own. Whoever
changes one must be its holder; look and change are one script.

    mr:v1:idem:<key>    holder -> request id, record -> the record
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError, ResponseError

from millrace.core.errors import ConfigError, Unavailable
from millrace.core.url import RedisUrl

from .refusals import refusal_of

_log = logging.getLogger(__name__)

PREFIX = "mr:v1:resp:"
EXPIRY_KEY = "mr:v1:resp-expiry"
SIZE_KEY = "mr:v1:resp-size"
IDEMPOTENCY_PREFIX = "mr:v1:idem:"
# What Redis needs for a key and its accounting beside the value, bytes; an estimate.
OVERHEAD_BYTES = 256
SOCKET_TIMEOUT_S = 0.25
MAX_CONNECTIONS = 16

T = TypeVar("T")

# KEYS: expiry, size. ARGV: prefix. Removes what has expired from the accounting, at most 1,000.
_PRUNE = """
local function forget(key)
  local size = tonumber(redis.call('HGET', KEYS[2], key) or 0)
  if size > 0 then
    redis.call('HINCRBY', KEYS[2], '', -size)
  end
  redis.call('HDEL', KEYS[2], key)
  redis.call('ZREM', KEYS[1], key)
  redis.call('DEL', ARGV[1] .. key)
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'LIMIT', 0, 1000)) do
  forget(key)
end
"""

# More ARGV: key, value, ttl_ms, size, max_bytes. 0 where the value alone is over the cap.
# The first command is one that a full Redis refuses: after any other write of the script it would
# let the rest pass.
_PUT = (
    "redis.call('HINCRBY', KEYS[2], '', 0)"
    + _PRUNE
    + """
local key, value, ttl_ms = ARGV[2], ARGV[3], tonumber(ARGV[4])
local size, max_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
if size > max_bytes then
  return 0
end
forget(key)
while tonumber(redis.call('HGET', KEYS[2], '') or 0) + size > max_bytes do
  local first = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
  if not first then
    redis.call('DEL', KEYS[2])
    break
  end
  forget(first)
end
redis.call('SET', ARGV[1] .. key, value, 'PX', ttl_ms)
redis.call('ZADD', KEYS[1], now_ms + ttl_ms, key)
redis.call('HSET', KEYS[2], key, size)
redis.call('HINCRBY', KEYS[2], '', size)
return 1
"""
)

_REMOVE = _PRUNE + "forget(ARGV[2])"

_COUNT = _PRUNE + "return redis.call('ZCARD', KEYS[1])"

# KEYS: the key. ARGV: holder, record, ttl_ms. The record that lies there, or nothing: claimed.
_CLAIM = """
local record = redis.call('HGET', KEYS[1], 'record')
if record then
  return record
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'record', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return false
"""

# As above; also where the claim has run out and nobody else has made one. 0: another holder.
_FINISH = """
local holder = redis.call('HGET', KEYS[1], 'holder')
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'record', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# KEYS: the key. ARGV: holder.
_FREE = """
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class StoreSize:
    """num_keys: values kept. used_bytes: memory that Redis says it uses for everything."""

    num_keys: int
    used_bytes: int


class StoreRefused(Unavailable):
    """Redis lives but will not do it: it is out of memory, or read-only."""


class RedisStore:
    """Raises StoreRefused where Redis will not, Unavailable where it is gone or slow.

    Connects again by itself. Every operation ends within `timeout_s`, one retry included.
    """

    def __init__(
        self,
        url: RedisUrl,
        *,
        ttl_s: float,
        max_bytes: int,
        timeout_s: float = SOCKET_TIMEOUT_S,
    ) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url.reveal(),
                max_connections=MAX_CONNECTIONS,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                # One more try: a pooled connection may have died with an earlier Redis.
                retry=Retry(NoBackoff(), 1),
                retry_on_error=[ConnectionError],
                decode_responses=False,
            )
            # Takes the options behind the question mark, which the pool only keeps.
            pool.make_connection()  # type: ignore[no-untyped-call]
        except (TypeError, ValueError):
            # Not chained: its words may quote the URL.
            raise ConfigError(
                f"redis_url {url} has an option behind its ? that the Redis client does not take",
                field="redis_url",
            ) from None
        self._url = url
        self._refusal = ""
        self._redis = Redis(connection_pool=pool)
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._timeout_s = timeout_s
        self.max_bytes = max_bytes
        self._put = self._redis.register_script(_PUT)
        self._remove = self._redis.register_script(_REMOVE)
        self._count = self._redis.register_script(_COUNT)
        self._claim = self._redis.register_script(_CLAIM)
        self._finish = self._redis.register_script(_FINISH)
        self._free = self._redis.register_script(_FREE)

    async def get(self, key: str) -> bytes | None:
        """The value, or None where there is none."""
        value = await self._run(self._redis.get(PREFIX + key))
        return value if isinstance(value, bytes) else None

    async def put(self, key: str, value: bytes) -> bool:
        """Keeps a value for the time to live; False where it alone is over the cap."""
        size = len(value) + len(key) + OVERHEAD_BYTES
        arguments: list[bytes | str | int] = [
            PREFIX,
            key,
            value,
            self._ttl_ms,
            size,
            self.max_bytes,
        ]
        return bool(await self._run(self._put(keys=[EXPIRY_KEY, SIZE_KEY], args=arguments)))

    async def remove(self, key: str) -> None:
        """Drops a value; nothing happens where there is none."""
        await self._run(self._remove(keys=[EXPIRY_KEY, SIZE_KEY], args=[PREFIX, key]))

    async def size(self) -> StoreSize:
        """What is kept now."""
        num_keys = await self._run(self._count(keys=[EXPIRY_KEY, SIZE_KEY], args=[PREFIX]))
        memory = await self._run(self._redis.info("memory"))
        return StoreSize(int(num_keys), int(memory["used_memory"]))

    async def claim(self, key: str, holder: str, record: bytes, ttl_ms: int) -> bytes | None:
        """Takes a free idempotency key, None then; else the record that has it."""
        found = await self._run(
            self._claim(keys=[IDEMPOTENCY_PREFIX + key], args=[holder, record, ttl_ms])
        )
        return found if isinstance(found, bytes) else None

    async def finish(self, key: str, holder: str, record: bytes, ttl_ms: int) -> bool:
        """Puts the holder's last record there; False where the key is another's."""
        arguments: list[bytes | str | int] = [holder, record, ttl_ms]
        return bool(await self._run(self._finish(keys=[IDEMPOTENCY_PREFIX + key], args=arguments)))

    async def free(self, key: str, holder: str) -> bool:
        """Gives a key back; False where the holder does not have it."""
        return bool(await self._run(self._free(keys=[IDEMPOTENCY_PREFIX + key], args=[holder])))

    async def close(self) -> None:
        """Ends the connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _run(self, operation: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await operation
        except (RedisError, OSError, TimeoutError) as error:
            refusal = refusal_of(error, self._url)
            self._tell(refusal)
            kind = StoreRefused if isinstance(error, ResponseError) else Unavailable
            raise kind(refusal) from None
        self._tell("")
        return result

    def _tell(self, refusal: str) -> None:
        """Logs a change, with the address that is nobody's business beyond the log."""
        if refusal == self._refusal:
            return
        self._refusal = refusal
        if refusal:
            _log.warning("%s", refusal, extra={"redis": str(self._url)})
        else:
            _log.info("Redis answers again", extra={"redis": str(self._url)})
