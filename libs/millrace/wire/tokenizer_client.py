"""The gateway's end of the tokenizer: encode, incremental decode, over one or more replicas."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import accumulate, count, pairwise
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from millrace.core.chat import ChatMessage
from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import DeadlineExceeded, InternalError, MillraceError, Unavailable
from millrace.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from millrace.v1 import types_pb2

from .status import error_from_rpc

# A replica that failed is asked last for this long.
AVOID_S = 1.0
# One that did not answer may be frozen: each try costs a request its time.
AVOID_SILENT_S = 10.0
# How long one replica may take while there is another to ask; decoding a frame takes milliseconds.
TRY_S = 2.0
DECODE_TRY_S = 1.0
READY_TIMEOUT_S = 1.0
# A try that ends sooner tells nothing of the replica, and hides what the last one told.
MIN_TRY_S = 0.05

T = TypeVar("T")
_DecodeCall = grpc.aio.StreamStreamCall[tokenizer_pb2.DecodeRequest, tokenizer_pb2.DecodeResponse]


class TokenizerClient:
    """Takes the replicas in turn; a call that one of them cannot take goes to the next.

    Channels stay the caller's. Each call ends within `timeout_s`, its tries together: with its
    answer, with the tokenizer's own error, or with Unavailable or DeadlineExceeded.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel], *, timeout_s: float = 10.0) -> None:
        if not channels:
            raise ValueError("a tokenizer client needs at least one channel")
        self._replicas = [_Replica(channel) for channel in channels]
        self._next = 0
        self._timeout_s = timeout_s

    async def encode_text(
        self, model: str, text: str, *, max_ids: int | None = None
    ) -> EncodedPrompt:
        """A plain prompt to token ids, unless these are more than `max_ids`."""
        request = tokenizer_pb2.EncodeRequest(model=model, text=text, max_ids=max_ids)
        return await self._encode(request)

    async def encode_chat(
        self, model: str, messages: Sequence[ChatMessage], *, max_ids: int | None = None
    ) -> EncodedPrompt:
        """A conversation to token ids, through the model's chat template; see `encode_text`."""
        turns = [
            types_pb2.Message(role=message.role, content=message.content, name=message.name)
            for message in messages
        ]
        chat = tokenizer_pb2.ChatInput(messages=turns)
        request = tokenizer_pb2.EncodeRequest(model=model, chat=chat, max_ids=max_ids)
        return await self._encode(request)

    async def decode(self, model: str, rows: Sequence[DecodeRow]) -> list[DecodedRow]:
        """One frame: the text that became certain in each row.

        Runs over a stream that stays open; where a tokenizer is gone this waits for its return,
        up to the timeout, since giving up would end streams that clients already read.
        """
        request = _decode_request(model, rows)
        tries = count()

        async def ask(replica: _Replica, timeout_s: float) -> tokenizer_pb2.DecodeResponse:
            # A refused frame ends the stream under all others: second tries go by themselves.
            if next(tries) == 0:
                return await replica.decode(request, timeout_s)
            return await replica.decode_alone(request, timeout_s)

        response = await self._try(ask, waits=True)
        return _decoded_rows(response, len(rows))

    async def pieces(
        self, model: str, token_ids: Sequence[int], *, is_at_start: bool = False
    ) -> list[bytes]:
        """The bytes of single tokens, in the middle of a text or at its start."""
        request = tokenizer_pb2.GetPiecesRequest(
            model=model, token_ids=token_ids, is_at_start=is_at_start
        )

        async def ask(replica: _Replica, timeout_s: float) -> tokenizer_pb2.GetPiecesResponse:
            return await replica.stub.GetPieces(request, timeout=timeout_s)

        return list((await self._try(ask)).pieces)

    async def special_ids(self, model: str) -> dict[str, int]:
        """Special tokens, which no text shows: their strings and ids."""
        request = tokenizer_pb2.GetTokenizerRequest(model=model)

        async def ask(replica: _Replica, timeout_s: float) -> tokenizer_pb2.GetTokenizerResponse:
            return await replica.stub.GetTokenizer(request, timeout=timeout_s)

        return dict((await self._try(ask)).special_ids)

    async def is_ready(self) -> bool:
        """True where at least one replica serves."""
        answers = await asyncio.gather(*(replica.is_ready() for replica in self._replicas))
        return any(answers)

    async def close(self) -> None:
        """Ends the decode streams; safe to repeat."""
        for replica in self._replicas:
            await replica.close()

    async def _encode(self, request: tokenizer_pb2.EncodeRequest) -> EncodedPrompt:
        async def ask(replica: _Replica, timeout_s: float) -> tokenizer_pb2.EncodeResponse:
            return await replica.stub.Encode(request, timeout=timeout_s)

        response = await self._try(ask)
        is_whole = len(response.token_ids) == response.num_tokens
        return EncodedPrompt(response.num_tokens, list(response.token_ids) if is_whole else None)

    async def _try(
        self, ask: Callable[[_Replica, float], Awaitable[T]], *, waits: bool = False
    ) -> T:
        """Asks one replica after the other until one answers; `waits`: until the time is over."""
        deadline = time.monotonic() + self._timeout_s
        error: MillraceError = Unavailable("no tokenizer answers")
        while True:
            for num_left, replica in self._in_turn():
                remaining_s = deadline - time.monotonic()
                if remaining_s <= MIN_TRY_S:
                    raise error
                most_s = DECODE_TRY_S if waits else TRY_S if num_left > 1 else remaining_s
                try:
                    return await ask(replica, min(most_s, remaining_s / num_left))
                except grpc.aio.AioRpcError as exc:
                    error = error_from_rpc(exc, "the tokenizer")
                except MillraceError as exc:
                    error = exc
                if not isinstance(error, (Unavailable, DeadlineExceeded)):
                    raise error
                is_silent = isinstance(error, DeadlineExceeded)
                replica.avoid(AVOID_SILENT_S if is_silent else AVOID_S)
            if not waits:
                raise error
            await asyncio.sleep(min(0.05, max(0.0, deadline - time.monotonic())))

    def _in_turn(self) -> Iterator[tuple[int, _Replica]]:
        """How many replicas are left, and the next one; those that failed lately come last.

        A single replica comes twice: its stream may only have broken.
        """
        num_replicas = len(self._replicas)
        start = self._next
        self._next = (start + 1) % num_replicas
        ordered = self._replicas[start:] + self._replicas[:start]
        ordered.sort(key=_Replica.is_avoided)
        yield from zip(range(num_replicas, 0, -1), ordered, strict=True)
        if num_replicas == 1:
            yield 1, ordered[0]


class _Replica:
    """One tokenizer process."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: tokenizer_pb2_grpc.TokenizerServiceAsyncStub = (
            tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        )
        self._health = health_pb2_grpc.HealthStub(channel)
        self._stream: _DecodeStream | None = None
        self._avoid_until = 0.0

    def avoid(self, seconds: float) -> None:
        self._avoid_until = time.monotonic() + seconds

    def is_avoided(self) -> bool:
        return time.monotonic() < self._avoid_until

    async def decode(
        self, request: tokenizer_pb2.DecodeRequest, timeout_s: float
    ) -> tokenizer_pb2.DecodeResponse:
        if self._stream is None or self._stream.is_broken:
            self._stream = _DecodeStream(self.stub.Decode())
        return await self._stream.decode(request, timeout_s)

    async def decode_alone(
        self, request: tokenizer_pb2.DecodeRequest, timeout_s: float
    ) -> tokenizer_pb2.DecodeResponse:
        stream = _DecodeStream(self.stub.Decode())
        try:
            return await stream.decode(request, timeout_s)
        finally:
            await stream.close()

    async def is_ready(self) -> bool:
        try:
            response = await self._health.Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=READY_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.close()


class _DecodeStream:
    """One open Decode call. Answers come in the order of the requests."""

    def __init__(self, call: _DecodeCall) -> None:
        self._call = call
        self._pending: deque[asyncio.Future[tokenizer_pb2.DecodeResponse]] = deque()
        self._lock = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())
        self.is_broken = False

    async def decode(
        self, request: tokenizer_pb2.DecodeRequest, timeout_s: float
    ) -> tokenizer_pb2.DecodeResponse:
        """Raises Unavailable where the stream breaks, DeadlineExceeded where nothing comes."""
        answer: asyncio.Future[tokenizer_pb2.DecodeResponse] = (
            asyncio.get_running_loop().create_future()
        )
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(request, answer)
                # A caller that gives up leaves its place in the queue: the answer still comes.
                return await asyncio.shield(answer)
        except TimeoutError as exc:
            self._fail(Unavailable("the decode stream does not answer"))
            raise DeadlineExceeded(f"the tokenizer did not answer in {timeout_s:g} s") from exc

    async def _send(
        self,
        request: tokenizer_pb2.DecodeRequest,
        answer: asyncio.Future[tokenizer_pb2.DecodeResponse],
    ) -> None:
        async with self._lock:
            if self.is_broken:
                raise Unavailable("the decode stream is broken")
            self._pending.append(answer)
            is_sent = False
            try:
                await self._call.write(request)
                is_sent = True
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The reader knows the reason and tells everybody who waits.
                is_sent = True
            finally:
                if not is_sent:
                    # Cancelled halfway: nobody can tell any more which answer is whose.
                    self._fail(Unavailable("the decode stream was cut"))

    async def _read(self) -> None:
        try:
            while True:
                response = await self._call.read()
                if not isinstance(response, tokenizer_pb2.DecodeResponse) or not self._pending:
                    self._fail(Unavailable("the tokenizer closed the decode stream"))
                    return
                answer = self._pending.popleft()
                if not answer.done():
                    answer.set_result(response)
        except grpc.aio.AioRpcError as exc:
            # A write that meets the end of the call hides the reason behind a bare INTERNAL.
            if exc.code() is grpc.StatusCode.INTERNAL and not exc.trailing_metadata():
                self._fail(Unavailable("the decode stream broke"))
            else:
                self._fail(error_from_rpc(exc, "the tokenizer"))
        except asyncio.CancelledError:
            self._fail(Unavailable("the decode stream was closed"))
            raise

    def _fail(self, error: MillraceError) -> None:
        """The oldest request is the one that the error is about; the others may be sent again."""
        if self.is_broken:
            return
        self.is_broken = True
        self._call.cancel()
        if asyncio.current_task() is not self._reader:
            self._reader.cancel()
        while self._pending:
            answer = self._pending.popleft()
            if not answer.done():
                answer.set_exception(error)
                # Whoever waited may be gone; then nobody is to be warned about the exception.
                answer.exception()
            error = Unavailable("the decode stream broke")

    async def close(self) -> None:
        self._fail(Unavailable("the decode stream was closed"))
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


def _decode_request(model: str, rows: Sequence[DecodeRow]) -> tokenizer_pb2.DecodeRequest:
    return tokenizer_pb2.DecodeRequest(
        model=model,
        num_tail=[len(row.tail_ids) for row in rows],
        num_tail_shown=[row.num_tail_shown for row in rows],
        num_new=[len(row.new_ids) for row in rows],
        tail_ids=[token_id for row in rows for token_id in row.tail_ids],
        new_ids=[token_id for row in rows for token_id in row.new_ids],
        final=[row.final for row in rows],
        rows_after_prompt=[number for number, row in enumerate(rows) if row.is_after_prompt],
    )


def _decoded_rows(response: tokenizer_pb2.DecodeResponse, num_rows: int) -> list[DecodedRow]:
    ends = list(accumulate(response.num_tail, initial=0))
    columns = (response.texts, response.num_tail, response.num_tail_shown)
    if any(len(column) != num_rows for column in columns) or ends[-1] != len(response.tail_ids):
        raise InternalError(f"the tokenizer's answer does not fit the {num_rows} rows asked")
    return [
        DecodedRow(text, tuple(response.tail_ids[start:end]), shown)
        for text, shown, (start, end) in zip(
            response.texts, response.num_tail_shown, pairwise(ends), strict=True
        )
    ]
