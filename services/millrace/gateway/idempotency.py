"""Requests with an idempotency key: each key runs once, the others attach or get its answer.

    free --claim--> running --good end--> finished (24 h)
                       '--failed, aborted--> free

The record in the cache service decides between gateways; `_Run` between the calls of this one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from millrace.core.answer import CachedAnswer
from millrace.core.errors import Conflict, MillraceError, Unavailable, Unsupported
from millrace.core.idempotency import IdempotencyRecord
from millrace.core.sampling import unsigned_seed

from .answers import Answer
from .events import Delta, Finished
from .generation import GenerationRequest
from .hold import Hold
from .ports import IdempotencyRecords
from .response_cache import answer_of
from .shared_answer import SharedAnswer

_log = logging.getLogger(__name__)

KEY_VERSION = 1
# How long a claim outlives the deadline of its request: clocks, and the last frames.
HOLD_GRACE_S = 60.0
# Characters of a key that an error shows: keys may be secrets.
NUM_SHOWN_CHARS = 4
# Tries to tell the end of a request, and the first pause between two; it doubles.
NUM_TRIES = 5
RETRY_S = 0.2
MAX_UNFREED = 4096


@dataclass(frozen=True, slots=True)
class Replay:
    """A finished request and its answer."""

    record: IdempotencyRecord
    answer: CachedAnswer


class _Run:
    """A key that this gateway works on; `released` is done when the cache service knows its end."""

    def __init__(self, body_hash: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.body_hash = body_hash
        self.opened: asyncio.Future[SharedAnswer | None] = loop.create_future()
        self.released: asyncio.Future[None] = loop.create_future()


class KeyedRequests:
    """The keys in use on this gateway. `records` None: there is no cache service."""

    def __init__(
        self, gateway_id: str, records: IdempotencyRecords | None, *, max_buffered_events: int
    ) -> None:
        self._gateway_id = gateway_id
        self._records = records
        self._max_buffered_events = max_buffered_events
        self._runs: dict[bytes, _Run] = {}
        # Requests that surely have no answer, but whose keys could not be given back.
        self._unfreed: OrderedDict[str, None] = OrderedDict()
        self._errands: set[asyncio.Task[None]] = set()

    @property
    def num_running(self) -> int:
        """Keys whose end is not told yet."""
        return len(self._runs)

    async def open(
        self,
        request: GenerationRequest,
        request_id: str,
        timeout_s: float,
        hold: Hold,
        run: Callable[[], Awaitable[Answer]],
    ) -> SharedAnswer | Replay:
        """The answer in the making, of this call or an earlier one, or a finished one.

        Raises `Conflict` for another body and where the answer cannot be had here, `Unavailable`
        where the key's state cannot be known, `Unsupported` without a cache service, and what
        `run` raises.
        """
        records = self._records
        if records is None:
            raise Unsupported(
                "idempotency_key needs the cache service, and this stack has none",
                field="idempotency_key",
            )
        key, body_hash = record_key(request), hash_of_body(request)
        while (earlier := self._runs.get(key)) is not None:
            _require_same_body(request, earlier.body_hash, body_hash)
            shared = await asyncio.shield(earlier.opened)
            if shared is not None and not shared.is_over:
                return shared
            await asyncio.shield(earlier.released)
        this = self._runs[key] = _Run(body_hash)
        claim = IdempotencyRecord(body_hash, request_id, self._gateway_id)
        try:
            holder = await hold.until_there(lambda: self._claim(records, key, claim, timeout_s))
            # It is this call's own if the answer to an earlier try was lost.
            if holder is not None and holder.request_id != request_id:
                self._release(key, this)
                return _replay(request, holder, body_hash)
            answer = await run()
        except BaseException:
            if not this.released.done():
                self._start(self._free(records, key, this, request_id))
            raise
        shared = SharedAnswer(
            answer,
            lambda shared, error: self._start(
                self._tell_end(records, key, this, claim, shared, error)
            ),
            max_buffered_events=self._max_buffered_events,
        )
        this.opened.set_result(shared)
        return shared

    async def finish_errands(self) -> None:
        """Waits until the ends of requests are told."""
        while self._errands:
            await asyncio.wait(self._errands)

    async def _claim(
        self,
        records: IdempotencyRecords,
        key: bytes,
        claim: IdempotencyRecord,
        timeout_s: float,
    ) -> IdempotencyRecord | None:
        hold_s = timeout_s + HOLD_GRACE_S
        holder = await records.claim(key, claim, hold_s)
        if holder is None or holder.request_id not in self._unfreed:
            return holder
        await records.free(key, holder.request_id)
        self._unfreed.pop(holder.request_id, None)
        return await records.claim(key, claim, hold_s)

    async def _tell_end(
        self,
        records: IdempotencyRecords,
        key: bytes,
        this: _Run,
        claim: IdempotencyRecord,
        shared: SharedAnswer,
        error: MillraceError | None,
    ) -> None:
        if error is not None or not _has_good_end(shared):
            await self._free(records, key, this, claim.request_id)
            return
        started = shared.started
        record = replace(
            claim,
            is_finished=True,
            model=started.model,
            revision=started.revision,
            seed=unsigned_seed(started.seed),
            answer=_answer_in(shared),
        )
        await self._finish(records, key, this, record)

    async def _finish(
        self, records: IdempotencyRecords, key: bytes, this: _Run, record: IdempotencyRecord
    ) -> None:
        try:
            if not await _persistently(lambda: records.finish(key, record)):
                # Not freed: the claim stays in the way until it runs out, rather than a second run.
                _log.error(
                    "an answer could not be kept under its idempotency key",
                    extra={"request_id": record.request_id},
                )
        finally:
            self._release(key, this)

    async def _free(
        self, records: IdempotencyRecords, key: bytes, this: _Run, request_id: str
    ) -> None:
        self._unfreed[request_id] = None
        if len(self._unfreed) > MAX_UNFREED:
            self._unfreed.popitem(last=False)
        try:
            # Once: who calls again with the key tries again.
            await records.free(key, request_id)
            self._unfreed.pop(request_id, None)
        except Unavailable as error:
            _log.warning(
                "an idempotency key could not be freed, it expires by itself: %s",
                error,
                extra={"request_id": request_id},
            )
        finally:
            self._release(key, this)

    def _release(self, key: bytes, this: _Run) -> None:
        if self._runs.get(key) is this:
            del self._runs[key]
        for future in (this.opened, this.released):
            if not future.done():
                future.set_result(None)

    def _start(self, errand: Awaitable[None]) -> None:
        task = asyncio.ensure_future(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


def record_key(request: GenerationRequest) -> bytes:
    """32 bytes over tenant and idempotency key."""
    encoded = json.dumps([KEY_VERSION, request.tenant, request.idempotency_key]).encode()
    return hashlib.blake2b(encoded, digest_size=32, person=b"mr-idem-key").digest()


def hash_of_body(request: GenerationRequest) -> bytes:
    """32 bytes over what the answer depends on, so without priority, deadline, cache and stream."""
    canonical = {"version": KEY_VERSION, "model": request.model, **request.canonical()}
    encoded = json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(encoded, digest_size=32, person=b"mr-idem-body").digest()


def _require_same_body(request: GenerationRequest, known: bytes, body_hash: bytes) -> None:
    if known != body_hash:
        raise _conflict(request, "was used with another body")


def _replay(request: GenerationRequest, holder: IdempotencyRecord, body_hash: bytes) -> Replay:
    _require_same_body(request, holder.body_hash, body_hash)
    if not holder.is_finished:
        raise _conflict(request, "belongs to a request that runs elsewhere; come back later")
    if holder.answer is None:
        raise _conflict(request, "has been answered, and that answer was not kept")
    return Replay(holder, holder.answer)


def _conflict(request: GenerationRequest, what: str) -> Conflict:
    shown = (request.idempotency_key or "")[:NUM_SHOWN_CHARS]
    return Conflict(
        f"the idempotency key that begins with {shown!r} {what}", field="idempotency_key"
    )


def _has_good_end(shared: SharedAnswer) -> bool:
    return _answer_in(shared, needs_texts=False) is not None


def _answer_in(shared: SharedAnswer, *, needs_texts: bool = True) -> CachedAnswer | None:
    """The whole answer; None where it did not come to its own end or has log-probabilities."""
    finished = shared.events[-1] if shared.events else None
    if not isinstance(finished, Finished):
        return None
    texts: list[list[str]] = [[] for _ in finished.choices]
    token_ids: list[list[int]] = [[] for _ in finished.choices]
    for event in shared.events:
        if isinstance(event, Delta):
            if event.logprobs and needs_texts:
                return None
            texts[event.choice].append(event.text)
            token_ids[event.choice].extend(event.token_ids)
    return answer_of(
        finished.choices,
        ["".join(parts) for parts in texts],
        token_ids,
        finished.usage.num_prompt_tokens,
    )


async def _persistently(call: Callable[[], Awaitable[bool]]) -> bool:
    """Tries again while the cache service is away, for a few seconds."""
    for number in range(NUM_TRIES):
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(RETRY_S * 2**number)
    return False
