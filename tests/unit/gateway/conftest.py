"""The gateway over fakes: byte tokenizer, memory bus, scripted scheduler, cache in a dict."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from millrace.bus.memory import MemoryBus
from millrace.core.answer import CachedAnswer, CacheStats
from millrace.core.chat import ChatMessage
from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import MillraceError, Unavailable
from millrace.core.idempotency import IdempotencyRecord
from millrace.core.membership import (
    ResumeQuery,
    SchedulerOwner,
    SchedulerStatus,
    WorkerRegistration,
)
from millrace.core.model import ModelInfo
from millrace.core.request import QueuedRequest
from millrace.core.sampling import SamplingParams
from millrace.core.tokens import FinishReason, Scheduled, TokenDelta, TokenFrame, TokenLogprobs
from millrace.gateway.access_log import AccessLog
from millrace.gateway.answers import Answer
from millrace.gateway.calls import begin_call
from millrace.gateway.directory import ModelDirectory
from millrace.gateway.drain_rate import DrainRate
from millrace.gateway.frames import FrameRouter
from millrace.gateway.generation import GenerationRequest
from millrace.gateway.health import Health
from millrace.gateway.http.app import create_app
from millrace.gateway.http.edge import HttpEdge
from millrace.gateway.members import watch_members
from millrace.gateway.pipeline import Pipeline, PipelineLimits
from millrace.telemetry.metrics import GatewayMetrics
from millrace.testing.span_recorder import SpanRecorder

EOS, MARK = 256, 257
SPECIAL_IDS = {"<eos>": EOS, "<mark>": MARK, "<beyond>": 512}
EPOCH = 7
WORDS = {
    300: b"Hello",
    301: b", ",
    302: b"world",
    303: b"!",
    304: b" END",
    305: b"ab",
    306: b"bc",
    400: "河🌊".encode(),
}
MODEL = ModelInfo(
    name="tiny",
    revision="0123456789abcdef",
    dtype="float32",
    max_model_len=64,
    vocab_size=512,
    aliases=("small",),
    eos_token_ids=(EOS,),
    num_parameters=1000,
    weight_bytes=4000,
    architecture="LlamaForCausalLM",
    config_json='{"hidden_size": 8}',
)


def to_ids(text: str) -> list[int]:
    """One token per byte."""
    return list(text.encode())


def piece_of(token_id: int) -> bytes:
    """The bytes of a token."""
    return bytes([token_id]) if token_id < 256 else WORDS.get(token_id, b"")


class FakeTokenizer:
    """Bytes as tokens, some words, and incremental decoding that holds back broken characters.
    A text that begins anew begins without its space."""

    def __init__(self) -> None:
        self.decode_calls: list[list[DecodeRow]] = []
        self.num_failures = 0
        self.num_special_calls = 0
        self.is_serving = True
        self.gate: asyncio.Event | None = None

    async def encode_text(
        self, model: str, text: str, *, max_ids: int | None = None
    ) -> EncodedPrompt:
        await self._pass_gate()
        ids = to_ids(text)
        return EncodedPrompt(len(ids), ids if max_ids is None or len(ids) <= max_ids else None)

    async def encode_chat(
        self, model: str, messages: Sequence[ChatMessage], *, max_ids: int | None = None
    ) -> EncodedPrompt:
        text = "".join(f"{message.content}\n" for message in messages)
        return await self.encode_text(model, text, max_ids=max_ids)

    async def decode(self, model: str, rows: Sequence[DecodeRow]) -> list[DecodedRow]:
        await asyncio.sleep(0)
        if self.num_failures:
            self.num_failures -= 1
            raise Unavailable("no tokenizer answers")
        self.decode_calls.append(list(rows))
        return [decode_row(row) for row in rows]

    async def pieces(
        self, model: str, token_ids: Sequence[int], *, is_at_start: bool = False
    ) -> list[bytes]:
        pieces = [piece_of(token_id) for token_id in token_ids]
        return [piece.lstrip(b" ") for piece in pieces] if is_at_start else pieces

    async def special_ids(self, model: str) -> dict[str, int]:
        await self._pass_gate()
        self.num_special_calls += 1
        return SPECIAL_IDS

    async def is_ready(self) -> bool:
        return self.is_serving

    async def _pass_gate(self) -> None:
        if not self.is_serving:
            raise Unavailable("no tokenizer answers")
        if self.gate is not None:
            await self.gate.wait()


def decode_row(row: DecodeRow) -> DecodedRow:
    """The tail is a visible id or two, shown or not; broken bytes show as U+FFFD."""
    shown = [token_id for token_id in row.tail_ids[: row.num_tail_shown] if piece_of(token_id)]
    ids = [*row.tail_ids[row.num_tail_shown :], *row.new_ids]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(b"".join(piece_of(token_id) for token_id in ids), row.final)
    held = ids[len(ids) - len(decoder.getstate()[0]) :]
    certain = [token_id for token_id in ids[: len(ids) - len(held)] if piece_of(token_id)]
    context = [*shown, *certain][-1:]
    return DecodedRow(text if shown else text.lstrip(" "), (*context, *held), len(context))


class FakeStream:
    """An Attach stream in memory."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sent: list[tuple[Any, ...]] = []
        self.is_closed = False
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()

    def push(self, event: TokenFrame | ResumeQuery | SchedulerStatus) -> None:
        self._incoming.put_nowait(event)

    def break_off(self) -> None:
        self._incoming.put_nowait(Unavailable("the stream broke"))

    async def events(self) -> AsyncIterator[TokenFrame | ResumeQuery | SchedulerStatus]:
        while True:
            event = await self._incoming.get()
            if isinstance(event, MillraceError):
                raise event
            yield event

    async def register(self, request_id: str) -> None:
        self.sent.append(("register", request_id))

    async def resume(self, request_id: str, cursors: Mapping[int, Sequence[int]]) -> None:
        self.sent.append(("resume", request_id, {key: list(ids) for key, ids in cursors.items()}))

    async def gone(self, request_id: str) -> None:
        self.sent.append(("gone", request_id))

    async def done(self, request_id: str) -> None:
        self.sent.append(("done", request_id))

    async def abort(self, request_id: str, reason: str) -> None:
        self.sent.append(("abort", request_id, reason))

    async def close(self) -> None:
        self.is_closed = True

    def told(self, kind: str) -> list[tuple[Any, ...]]:
        return [each for each in self.sent if each[0] == kind]


class FakeBus(MemoryBus):
    """Records what is published; `on_request` plays the scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[QueuedRequest] = []
        self.headers: list[dict[str, str]] = []
        self.aborted: list[str] = []
        self.refusal: MillraceError | None = None
        self.on_request: Callable[[QueuedRequest], None] | None = None
        self.is_up = True

    @property
    def is_connected(self) -> bool:
        return self.is_up

    async def publish_request(self, request: QueuedRequest, headers: Mapping[str, str]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.published.append(request)
        self.headers.append(dict(headers))
        if self.on_request is not None:
            self.on_request(request)

    async def publish_abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


class FakeCache:
    """Answers in a dict."""

    def __init__(self) -> None:
        self.answers: dict[bytes, CachedAnswer] = {}
        self.num_look_ups = 0
        self.is_connected = True

    async def look_up(self, key: bytes) -> CachedAnswer | None:
        self.num_look_ups += 1
        return self.answers.get(key)

    async def store(self, key: bytes, answer: CachedAnswer) -> bool:
        assert len(key) == 32
        assert answer.is_consistent()
        self.answers[key] = answer
        return True

    async def stats(self) -> CacheStats:
        return CacheStats(
            connected=self.is_connected, num_keys=len(self.answers), used_bytes=10, max_bytes=100
        )


class FakeRecords:
    """Idempotency records in a dict, as they would lie in Redis; `is_up` False: unreachable."""

    def __init__(self) -> None:
        self.records: dict[bytes, IdempotencyRecord] = {}
        self.is_up = True
        self.holds_s: list[float] = []

    async def claim(
        self, key: bytes, record: IdempotencyRecord, hold_s: float
    ) -> IdempotencyRecord | None:
        await self._call()
        self.holds_s.append(hold_s)
        holder = self.records.setdefault(key, record)
        return None if holder is record else holder

    async def finish(self, key: bytes, record: IdempotencyRecord) -> bool:
        await self._call()
        assert self.records[key].request_id == record.request_id
        self.records[key] = record
        return True

    async def free(self, key: bytes, request_id: str) -> bool:
        await self._call()
        if key not in self.records or self.records[key].request_id != request_id:
            return False
        del self.records[key]
        return True

    async def _call(self) -> None:
        await asyncio.sleep(0)
        if not self.is_up:
            raise Unavailable("no Redis", field="idempotency_key", retry_after_s=1.0)


class Harness:
    """A gateway without sockets. `reply` is the output of every choice, unless `script` is set."""

    def __init__(self, limits: PipelineLimits) -> None:
        self.bus = FakeBus()
        self.tokenizer = FakeTokenizer()
        self.cache = FakeCache()
        self.records = FakeRecords()
        self.registry = CollectorRegistry()
        self.metrics = GatewayMetrics(self.registry)
        self.directory = ModelDirectory("", unix_time_s=lambda: 1_700_000_000.0)
        self.now_s = 1000.0
        self.streams: list[FakeStream] = []
        self.is_refusing_streams = False
        self.reply: list[int] = [300, 301, 302, 303, EOS]
        self.bus.on_request = self._play
        self.router = FrameRouter(
            self._open_stream,
            self.tokenizer,
            self.directory,
            self.bus.publish_abort,
            self.metrics.stale_frames_dropped.inc,
        )
        self.pipeline = Pipeline(
            "gateway-1",
            self.directory,
            self.tokenizer,
            self.cache,
            self.router,
            self.bus,
            self.metrics,
            limits,
            self.records,
            DrainRate(clock=lambda: self.now_s),
        )
        self.loses_spans = False
        self.health = Health(
            self.bus,
            self.tokenizer,
            self.cache,
            self.directory,
            lambda: self.pipeline.is_draining,
            loses_spans=lambda: self.loses_spans,
        )
        self.edge = HttpEdge(
            self.pipeline, self.directory, self.health, self.registry, AccessLog(self.metrics)
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """A worker and a scheduler, and the stream to it."""
        await self.bus.register_worker(WorkerRegistration("w1", "b1", "x:1", MODEL, 10, 4, 4))
        await self.own()
        self._tasks.append(
            asyncio.create_task(watch_members(self.bus, self.directory, self.router))
        )
        await self.until(lambda: self.directory.get("tiny").is_attached if self.streams else False)

    async def own(self, epoch: int = EPOCH, address: str = "s:1") -> None:
        """An active scheduler."""
        await self.bus.claim_ownership(SchedulerOwner("s1", epoch, address, "tiny"))

    async def stop(self) -> None:
        """Ends every task."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.router.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for what other tasks do."""
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    @property
    def stream(self) -> FakeStream:
        """The newest stream."""
        return self.streams[-1]

    @property
    def queued(self) -> QueuedRequest:
        """The newest published request."""
        return self.bus.published[-1]

    def silence(self) -> None:
        """The scheduler takes requests and says nothing by itself."""
        self.bus.on_request = None

    def send(
        self,
        token_ids: Sequence[int],
        start: int,
        finish: FinishReason = FinishReason.NONE,
        *,
        choice: int = 0,
        attempt: int = EPOCH,
        request_id: str | None = None,
    ) -> None:
        """One frame with one delta."""
        delta = TokenDelta(
            request_id or self.queued.request_id, choice, start, list(token_ids), finish
        )
        self.stream.push(TokenFrame(attempt, deltas=[delta]))

    async def open(self, **fields: Any) -> Answer:
        """A request through the pipeline."""
        if not fields.keys() & {"text", "token_ids", "messages"}:
            fields["text"] = "hi"
        sampling = SamplingParams(**fields.pop("sampling", {}))
        request = GenerationRequest(sampling=sampling, **fields)
        return await self.pipeline.open(request, begin_call("chat", {}))

    async def read(self, answer: Answer) -> list[Any]:
        """Every event; the answer is abandoned after."""
        try:
            async with asyncio.timeout(5):
                return [event async for event in answer]
        finally:
            answer.abandon()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """HTTP without a socket."""
        transport = httpx.ASGITransport(create_app(self.edge), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client

    def _play(self, request: QueuedRequest) -> None:
        stream = self.stream
        stream.push(
            TokenFrame(
                EPOCH, scheduled=[Scheduled(request.request_id, request.arrival_unix_ns + 1000, 0)]
            )
        )
        reply, finish = self.reply[: request.max_tokens], FinishReason.LENGTH
        for number, token_id in enumerate(reply, start=1):
            if token_id in request.stop_token_ids:
                reply, finish = reply[:number], FinishReason.STOP
                break
        for index, token_id in enumerate(reply):
            is_last = index == len(reply) - 1
            frame = TokenFrame(EPOCH)
            for choice in range(request.num_choices):
                frame.deltas.append(
                    TokenDelta(
                        request.request_id,
                        choice,
                        index,
                        [token_id],
                        finish if is_last else FinishReason.NONE,
                        _logprobs(request, token_id),
                    )
                )
            stream.push(frame)

    async def _open_stream(self, address: str) -> FakeStream:
        if self.is_refusing_streams:
            raise Unavailable("the scheduler does not answer")
        stream = FakeStream(address)
        self.streams.append(stream)
        stream.push(SchedulerStatus(MODEL, 1, 0, 0, 10, 10, EPOCH))
        return stream


def _logprobs(request: QueuedRequest, token_id: int) -> list[TokenLogprobs]:
    num_top = request.sampling.top_logprobs
    if num_top is None:
        return []
    top = ((token_id, -0.5), (65, -1.5))
    return [TokenLogprobs(-0.5, top[:num_top])]


@pytest.fixture
def limits() -> PipelineLimits:
    """What is away is refused at once. Overridden where a test needs others."""
    return PipelineLimits(hold_s=0)


@pytest.fixture
async def gateway(limits: PipelineLimits) -> AsyncIterator[Harness]:
    """A started gateway."""
    harness = Harness(limits)
    await harness.start()
    yield harness
    await harness.stop()


@pytest.fixture
def recorder() -> Iterator[SpanRecorder]:
    """The spans that the gateway makes."""
    made = SpanRecorder()
    made.install("gateway")
    yield made
    made.clear()
