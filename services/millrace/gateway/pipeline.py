"""The path of a request: validate, model, response cache, encode, limits, register, publish, read.

Both edges go through `Pipeline.open`: it returns when the request is accepted (or answered from
the cache) and raises an error of the tree before that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from millrace.bus.base import Bus
from millrace.core.answer import CachedAnswer
from millrace.core.cancellation import CancelReason
from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import (
    Aborted,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MillraceError,
    OutOfStorage,
    Overloaded,
    Unavailable,
)
from millrace.core.model import ModelInfo
from millrace.core.request import QueuedRequest
from millrace.core.request_fields.ignored import IgnoredFields
from millrace.core.sampling import draw_seed
from millrace.telemetry import names
from millrace.telemetry.metrics import GatewayMetrics
from millrace.telemetry.propagation import inject

from .answers import Answer, LiveAnswer, StoredAnswer
from .calls import Call
from .choice_output import ChoiceOutput
from .content_capture import CapturedAnswer
from .directory import ModelDirectory
from .drain_rate import DrainRate, Load
from .events import Started
from .frames import FrameRouter
from .generation import CacheMode, GenerationRequest
from .hold import Hold
from .idempotency import KeyedRequests
from .limits import check_encoded, check_token_ids, resolve_max_tokens, stop_ids
from .link_events import watch_link
from .live_request import LiveRequest
from .ports import AnswerCache, IdempotencyRecords, Tokenizer
from .queue_forecast import QueueForecast
from .record import RequestRecord
from .response_cache import cache_key, uses_cache
from .shared_answer import SharedAnswer, SharedReader
from .special_tokens import SpecialTokens, SpecialTokensOfModels
from .stop_strings import StopStrings

_log = logging.getLogger(__name__)
# Made once: making one costs as much as a span. It finds the process's provider by itself.
_tracer = trace.get_tracer(__name__)


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """The settings that the path needs."""

    max_in_flight: int = 4096
    max_buffered_events: int = 1024
    default_timeout_s: float = 600.0
    max_timeout_s: float = 3600.0
    trace_content: bool = False
    hold_s: float = 5.0


class Pipeline:
    """Everything between an edge and the rest of the stack.

    `cache` None: no response cache; `idempotency_records` None: no idempotency keys.
    """

    def __init__(
        self,
        gateway_id: str,
        directory: ModelDirectory,
        tokenizer: Tokenizer,
        cache: AnswerCache | None,
        router: FrameRouter,
        bus: Bus,
        metrics: GatewayMetrics,
        limits: PipelineLimits = PipelineLimits(),
        idempotency_records: IdempotencyRecords | None = None,
        drain_rate: DrainRate | None = None,
    ) -> None:
        self._gateway_id = gateway_id
        self._directory = directory
        self._tokenizer = tokenizer
        self._special_tokens = SpecialTokensOfModels(tokenizer)
        self._cache = cache
        self._router = router
        self._bus = bus
        self._metrics = metrics
        self._limits = limits
        self._forecast = QueueForecast(drain_rate or DrainRate(), directory, router)
        self._keyed = KeyedRequests(
            gateway_id, idempotency_records, max_buffered_events=limits.max_buffered_events
        )
        # By id: True where an abort came before there was anything to end.
        self._opening: dict[str, bool] = {}
        # By the id of the call: calls of many requests, and those that read another one's answer.
        self._batches: dict[str, Call] = {}
        self._readers: dict[str, SharedReader] = {}
        self._is_draining = False
        self._errands: set[asyncio.Task[None]] = set()

    @property
    def num_in_flight(self) -> int:
        """Requests between arrival and end."""
        return len(self._opening) + self._router.num_live

    @property
    def load(self) -> Load:
        """How full this gateway is."""
        rate = self._forecast.rate.total_per_s()
        return Load(self._limits.max_in_flight, self.num_in_flight, rate)

    @property
    def is_draining(self) -> bool:
        """True where new requests are refused."""
        return self._is_draining

    def start_draining(self) -> None:
        """Refuses new requests from now on; running ones go on."""
        self._is_draining = True

    def end_all(self) -> int:
        """Running requests end with `Unavailable`; how many these were."""
        return self._router.end_all(_shutting_down())

    async def open(self, request: GenerationRequest, call: Call) -> Answer:
        """Accepts a request. Raises an error of the tree; what is not one becomes InternalError."""
        record = RequestRecord(self._metrics, call)
        self._opening[call.request_id] = False
        try:
            with trace.use_span(
                call.span,
                end_on_exit=False,
                record_exception=False,
                set_status_on_exception=False,
            ):
                answer = await self._open(request, call, record)
            if self._opening[call.request_id]:
                self._abort_live(call.request_id)
            if self._limits.trace_content:
                return CapturedAnswer(answer, request, call.span)
            return answer
        except MillraceError as error:
            if isinstance(error, DeadlineExceeded):
                record.cancelled(CancelReason.DEADLINE)
            record.fail(error)
            raise
        except asyncio.CancelledError:
            record.cancelled(CancelReason.CLIENT)
            record.fail(Aborted("the client went away"))
            raise
        except Exception as exc:
            _log.exception("a request failed", extra={"request_id": call.request_id})
            defect = InternalError(f"internal error; the request id is {call.request_id}")
            record.fail(defect)
            raise defect from exc
        finally:
            del self._opening[call.request_id]

    async def abort(self, request_id: str) -> bool:
        """Ends a request by id; True where it was live here. Others hear of it over the bus."""
        if self.abort_here(request_id):
            return True
        await self._bus.publish_abort(request_id)
        return False

    @contextmanager
    def batch(self, call: Call) -> Iterator[None]:
        """While it is open, an abort of the call's id ends each of its parts, to come ones too."""
        self._batches[call.request_id] = call
        try:
            yield
        finally:
            del self._batches[call.request_id]

    def abort_here(self, request_id: str) -> bool:
        """Ends a request, or all of a batch, by id; False if it is not, or no longer, live here."""
        if (batch := self._batches.get(request_id)) is not None:
            batch.is_aborted = True
            for part in batch.parts:
                self.abort_here(part.request_id)
            return True
        if (reader := self._readers.get(request_id)) is not None:
            reader.fail(_aborted())
            return True
        if request_id in self._opening:
            # Nothing is there yet that could end; `open` does it.
            self._opening[request_id] = True
            return True
        return self._abort_live(request_id)

    def _abort_live(self, request_id: str) -> bool:
        live = self._router.find(request_id)
        if live is None:
            return False
        live.abort()
        self._router.settle(live, CancelReason.ABORT)
        return True

    def tell_ignored(self, call: Call, ignored: IgnoredFields) -> None:
        """The call's reply names what of it was not taken into account; metrics count it."""
        if ignored:
            call.ignored = ignored.header_text()
            self._metrics.ignored_fields.labels("harmless").inc(ignored.num_harmless)
            self._metrics.ignored_fields.labels("unknown").inc(ignored.num_unknown)

    async def count_tokens(
        self, request: GenerationRequest, *, max_ids: int | None = None
    ) -> EncodedPrompt:
        """What the model would see, with its ids unless these are more than `max_ids`."""
        info = self._directory.find(request.model)
        check_token_ids(request, info)
        return await self._encoded(request, info, max_ids)

    async def finish_errands(self) -> None:
        """Waits for answers on their way into the cache, and for keys to be finished or freed."""
        await self._keyed.finish_errands()
        if self._errands:
            await asyncio.wait(self._errands)

    async def _open(self, request: GenerationRequest, call: Call, record: RequestRecord) -> Answer:
        if self._is_draining:
            raise _shutting_down()
        if call.whole is not None and call.whole.is_aborted:
            raise _aborted()
        timeout_s = self._timeout_s(request)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._open_in_time(request, call, record, timeout_s)
        except TimeoutError as exc:
            raise _deadline_error(timeout_s) from exc

    async def _open_in_time(
        self, request: GenerationRequest, call: Call, record: RequestRecord, timeout_s: float
    ) -> Answer:
        hold = Hold(self._limits.hold_s, lambda: self._is_draining)
        info = await hold.until_there(lambda: self._find(request.model))
        # Before any key is made of it: a request that says the model's defaults is the same one.
        request = request.with_sampling(request.sampling.resolved(info.default_sampling))
        record.on_model(info, request)
        check_token_ids(request, info)
        if self.num_in_flight > self._limits.max_in_flight:
            raise Overloaded(
                f"this gateway holds {self._limits.max_in_flight} requests, which is its limit",
                retry_after_s=self._forecast.retry_after_s(info),
            )
        if request.idempotency_key is None:
            return await self._accept(request, info, call, record, timeout_s, hold)
        return await self._open_keyed(request, info, call, record, timeout_s, hold)

    async def _open_keyed(
        self,
        request: GenerationRequest,
        info: ModelInfo,
        call: Call,
        record: RequestRecord,
        timeout_s: float,
        hold: Hold,
    ) -> Answer:
        """Runs a request under its idempotency key, or joins or replays the one that has it."""
        found = await self._keyed.open(
            request,
            call.request_id,
            timeout_s,
            hold,
            lambda: self._accept(request, info, call, record, timeout_s, hold),
        )
        if isinstance(found, SharedAnswer):
            if found.started.request_id == call.request_id:
                return found.attach()
            call.span.set_attribute(names.ATTR_SHARED_WITH, found.started.request_id)
            reader = found.attach(record)
            reader.expire_in(_left_s(call, timeout_s), _deadline_error(timeout_s))
            self._readers[call.request_id] = reader
            reader.on_left = lambda: self._readers.pop(call.request_id, None)
            return reader
        given = request.sampling.seed
        started = Started(
            request_id=call.request_id,
            model=found.record.model,
            revision=found.record.revision,
            num_prompt_tokens=found.answer.num_prompt_tokens,
            seed=found.record.seed if given is None else given,
            is_cached=True,
            created_unix_s=call.arrival_unix_ns // 1_000_000_000,
            sampling=request.sampling.in_force(),
        )
        return StoredAnswer(started, found.answer, call, record)

    async def _accept(
        self,
        request: GenerationRequest,
        info: ModelInfo,
        call: Call,
        record: RequestRecord,
        timeout_s: float,
        hold: Hold,
    ) -> Answer:
        seed = request.sampling.seed
        if seed is None:
            seed = draw_seed()
        key = cache_key(request, info) if self._cache and uses_cache(request) else None
        if key is not None:
            stored = await self._look_up(key, request, record)
            if stored is not None:
                started = _started(call, info, request, stored.num_prompt_tokens, seed, True)
                return StoredAnswer(started, stored, call, record)
        await hold.until_there(lambda: self._require_served(info))
        self._forecast.require_time(info, request.priority, _left_s(call, timeout_s))
        prompt_token_ids = await hold.until_there(lambda: self._encode(request, info))
        special = await hold.until_there(lambda: self._special(request, info))
        stop_strings = StopStrings(request.sampling.stop, special)
        queued = self._queued(request, info, call, prompt_token_ids, stop_strings, seed, timeout_s)
        live = self._live(request, queued, stop_strings, special)
        record.watch(live)
        watch_link(live, call.span)
        await self._router.register(live)
        try:
            await self._publish(queued, hold)
        except BaseException as error:
            # Space on a disk is not what the queue's drain brings.
            if isinstance(error, Overloaded) and not isinstance(error, OutOfStorage):
                error.retry_after_s = self._forecast.retry_after_s(info, error.retry_after_s)
            # The publish may have arrived although its answer did not.
            self._router.settle(live, CancelReason.REFUSED)
            raise
        record.on_accepted(len(prompt_token_ids), queued.max_tokens, seed)
        self._arm_deadline(live, call, timeout_s)
        return LiveAnswer(
            _started(call, info, request, len(prompt_token_ids), seed, False),
            live,
            call,
            record,
            self._router.settle,
            None if key is None else self._storer(key, call),
        )

    async def _find(self, name: str) -> ModelInfo:
        return self._directory.find(name)

    async def _require_served(self, info: ModelInfo) -> None:
        self._directory.require_served(info)

    def _timeout_s(self, request: GenerationRequest) -> float:
        if request.timeout_ms is None:
            return self._limits.default_timeout_s
        limit_ms = int(self._limits.max_timeout_s * 1000)
        if request.timeout_ms > limit_ms:
            name = request.names["timeout_ms"]
            raise InvalidRequest(
                f"{name} is {request.timeout_ms}; the limit is {limit_ms}",
                field=name,
                metadata={"value": str(request.timeout_ms), "max": str(limit_ms)},
            )
        return request.timeout_ms / 1000

    async def _look_up(
        self, key: bytes, request: GenerationRequest, record: RequestRecord
    ) -> CachedAnswer | None:
        if self._cache is None or request.cache is CacheMode.REFRESH:
            record.on_cache("refresh")
            return None
        stored = await self._cache.look_up(key)
        if stored is not None and len(stored.texts) != request.sampling.num_choices:
            stored = None
        record.on_cache("miss" if stored is None else "hit")
        return stored

    async def _encode(self, request: GenerationRequest, info: ModelInfo) -> list[int]:
        encoded = await self._encoded(request, info, info.max_model_len)
        # Refused here if the ids were left out, since there were too many.
        resolve_max_tokens(request, encoded.num_tokens, info)
        return encoded.token_ids or []

    async def _encoded(
        self, request: GenerationRequest, info: ModelInfo, max_ids: int | None
    ) -> EncodedPrompt:
        if request.token_ids is not None:
            encoded = EncodedPrompt(len(request.token_ids), list(request.token_ids))
        elif request.messages is not None:
            encoded = await self._tokenizer.encode_chat(
                info.name, request.messages, max_ids=max_ids
            )
        else:
            encoded = await self._tokenizer.encode_text(
                info.name, request.text or "", max_ids=max_ids
            )
        check_encoded(encoded, request.prompt_field, info)
        return encoded

    async def _special(self, request: GenerationRequest, info: ModelInfo) -> SpecialTokens:
        """The model's special tokens if the request can tell that they are there."""
        sampling = request.sampling
        if not sampling.stop and sampling.top_logprobs is None:
            return SpecialTokens()
        return await self._special_tokens.of(info)

    def _queued(
        self,
        request: GenerationRequest,
        info: ModelInfo,
        call: Call,
        prompt_token_ids: list[int],
        stop_strings: StopStrings,
        seed: int,
        timeout_s: float,
    ) -> QueuedRequest:
        return QueuedRequest(
            request_id=call.request_id,
            gateway_id=self._gateway_id,
            model=info.name,
            prompt_token_ids=prompt_token_ids,
            sampling=request.sampling.spec(seed),
            stop_token_ids=tuple(
                dict.fromkeys((*stop_ids(request.sampling, info), *stop_strings.token_ids))
            ),
            max_tokens=resolve_max_tokens(request, len(prompt_token_ids), info),
            num_choices=request.sampling.num_choices,
            priority=request.priority,
            deadline_unix_ms=call.arrival_unix_ns // 1_000_000 + int(timeout_s * 1000),
            arrival_unix_ns=call.arrival_unix_ns,
            tenant=request.tenant,
        )

    def _live(
        self,
        request: GenerationRequest,
        queued: QueuedRequest,
        stop_strings: StopStrings,
        special: SpecialTokens,
    ) -> LiveRequest:
        # An answer begins anew: what its template wrote before it is no part of its text.
        text_before = queued.prompt_token_ids if request.messages is None else ()
        stop_token_ids = frozenset(queued.stop_token_ids)
        choices = [
            ChoiceOutput(
                index,
                stop_strings,
                stop_token_ids,
                request.sampling.min_tokens,
                text_before,
                special.ids,
            )
            for index in range(queued.num_choices)
        ]
        return LiveRequest(
            queued.request_id,
            queued.model,
            choices,
            max_buffered_events=self._limits.max_buffered_events,
        )

    async def _publish(self, queued: QueuedRequest, hold: Hold) -> None:
        with _tracer.start_as_current_span(
            names.SPAN_SEND,
            kind=SpanKind.PRODUCER,
            attributes={
                names.ATTR_MESSAGING_SYSTEM: names.MESSAGING_SYSTEM_NATS,
                names.ATTR_MESSAGING_OPERATION_NAME: "send",
                names.ATTR_MESSAGING_OPERATION_TYPE: "send",
                names.ATTR_MESSAGING_DESTINATION_TEMPLATE: names.DESTINATION_TEMPLATE_REQUEST,
                names.ATTR_MESSAGING_MESSAGE_ID: queued.request_id,
            },
            record_exception=False,
        ):
            headers: dict[str, str] = {}
            inject(headers)
            # The queue knows the message by its id: what was published twice is there once.
            await hold.until_there(lambda: self._bus.publish_request(queued, headers))

    def _arm_deadline(self, live: LiveRequest, call: Call, timeout_s: float) -> None:
        def expire() -> None:
            if not live.is_over:
                live.fail(_deadline_error(timeout_s))
                self._router.settle(live, CancelReason.DEADLINE)

        timer = asyncio.get_running_loop().call_later(_left_s(call, timeout_s), expire)

        def close() -> None:
            timer.cancel()
            if not live.has_failed:
                self._forecast.rate.on_finished(live.model)

        live.on_closed = close
        if live.is_over:
            close()

    def _storer(self, key: bytes, call: Call) -> Any:
        def store(answer: CachedAnswer) -> None:
            if self._cache is not None:
                # Below the root span; the client does not wait for it.
                with trace.use_span(call.span, end_on_exit=False):
                    self._run_errand(self._store(key, answer))

        return store

    async def _store(self, key: bytes, answer: CachedAnswer) -> None:
        if self._cache is not None:
            await self._cache.store(key, answer)

    def _run_errand(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


def _started(
    call: Call,
    info: ModelInfo,
    request: GenerationRequest,
    num_prompt_tokens: int,
    seed: int,
    is_cached: bool,
) -> Started:
    return Started(
        request_id=call.request_id,
        model=info.name,
        revision=info.revision,
        num_prompt_tokens=num_prompt_tokens,
        seed=seed,
        is_cached=is_cached,
        created_unix_s=call.arrival_unix_ns // 1_000_000_000,
        sampling=request.sampling.in_force(),
    )


def _left_s(call: Call, timeout_s: float) -> float:
    return max(0.0, timeout_s - call.elapsed_ns / 1e9)


def _aborted() -> Aborted:
    return Aborted("the request was aborted")


def _shutting_down() -> Unavailable:
    return Unavailable("this gateway is shutting down", retry_after_s=1.0)


def _deadline_error(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the request's deadline of {timeout_s * 1000:g} ms has passed",
        metadata={"timeout_ms": f"{timeout_s * 1000:g}"},
    )
