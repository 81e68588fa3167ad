"""Watching a KV bucket whose entries expire without a word."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar

import nats.errors
from nats.js.kv import KeyValue

from millrace.core.errors import Unavailable

from .nats_errors import answering, raise_if_cancelled
from .nats_link import CALL_TIMEOUT_S, NatsLink, NatsSession

_log = logging.getLogger(__name__)

RETRY_S = 0.2

Entry = TypeVar("Entry")
BucketOf = Callable[[NatsSession], KeyValue]


async def unsubscribe_quietly(unsubscribe: Callable[[], object]) -> None:
    """Ends a subscription that may have ended already."""
    try:
        result = unsubscribe()
        if asyncio.iscoroutine(result):
            await result
    except (nats.errors.Error, ValueError) as exc:
        _log.debug("nats: unsubscribe: %s", exc)


async def watch_entries(
    link: NatsLink, bucket_of: BucketOf, ttl_s: float, decode: Callable[[bytes], Entry]
) -> AsyncIterator[tuple[str, Entry | None]]:
    """Watches a bucket; an entry not renewed for `ttl_s` counts as gone.

    The server drops expired entries without telling, hence the clock on this side. A renewal that
    changes nothing is not passed on.
    """
    raw_by_key: dict[str, bytes] = {}
    seen_s: dict[str, float] = {}
    async with aclosing(_updates(link, bucket_of)) as updates:
        async for update in updates:
            now_s = time.monotonic()
            if update is not None and update.key is not None:
                key, raw = update.key, update.value or b""
                if update.operation in ("DEL", "PURGE"):
                    seen_s[key] = -1.0
                else:
                    is_new = raw_by_key.get(key) != raw
                    raw_by_key[key], seen_s[key] = raw, now_s
                    if is_new:
                        yield key, decode(raw)
            for key in [key for key, seen in seen_s.items() if now_s - seen > ttl_s]:
                del seen_s[key]
                if raw_by_key.pop(key, None) is not None:
                    yield key, None


async def _updates(
    link: NatsLink, bucket_of: BucketOf
) -> AsyncGenerator[KeyValue.Entry | None, None]:
    """What a watcher sees, and None about once a second.

    A server that has been started anew knows no watchers; so every session gets a new one, which
    begins with the present state.
    """
    told = ""
    while True:
        try:
            session = await link.session()
            with answering():
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    watcher = await bucket_of(session).watchall()
        except Unavailable as error:
            if error.message != told:
                told = error.message
                _log.warning("nats: entries cannot be watched, trying again: %s", error)
            await asyncio.sleep(RETRY_S)
            yield None
            continue
        told = ""
        try:
            while link.is_current(session):
                try:
                    update = await watcher.updates(timeout=1.0)  # type: ignore[no-untyped-call]
                except (TimeoutError, nats.errors.TimeoutError):
                    update = None
                raise_if_cancelled()
                yield update
        finally:
            await _stop(watcher)


async def _stop(watcher: KeyValue.KeyWatcher) -> None:
    await unsubscribe_quietly(watcher.stop)
    # The library leaves these tasks running where the connection has been closed before.
    consumer = None if watcher._sub is None else watcher._sub._sub._jsi
    for task in (getattr(consumer, "_hbtask", None), getattr(consumer, "_fctask", None)):
        if task is not None:
            task.cancel()
