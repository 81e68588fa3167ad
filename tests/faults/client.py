"""Clients of the public edges, and what every one of them must have got."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc

from millrace.core.request import QueuedRequest
from millrace.core.tokens import FinishReason
from millrace.testing.model_worker import expected_output
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2

WAIT_S = 15.0
TOKENS_PATH = "/v1/completions"


@dataclass
class Reply:
    """What one client has of one request, as it came."""

    asked: QueuedRequest
    request_id: str = ""
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None
    num_terminals: int = 0
    error: grpc.StatusCode | None = None
    error_text: str = ""
    arrived_s: list[float] = field(default_factory=list)
    is_over: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def gaps_s(self) -> list[float]:
        """Between one delta and the next."""
        pairs = zip(self.arrived_s, self.arrived_s[1:], strict=False)
        return [later - earlier for earlier, later in pairs]

    async def until(self, condition: Callable[[Reply], bool], wait_s: float = WAIT_S) -> None:
        """Waits for something that arrives."""
        async with asyncio.timeout(wait_s):
            while not condition(self):
                assert not self.is_over, f"over before that: {self.error} {self.error_text}"
                self._changed.clear()
                await self._changed.wait()

    def take(self, response: inference_pb2.GenerateResponse) -> None:
        """One message of the stream."""
        kind = response.WhichOneof("event")
        assert not self.num_terminals, f"{kind} after the end"
        if kind == "started":
            self.request_id = response.started.request_id
        elif kind == "delta":
            self.tokens.extend(response.delta.token_ids)
            self.text += response.delta.text
            self.arrived_s.append(time.monotonic())
        elif kind == "finished":
            self.num_terminals += 1
            self.finish = FinishReason(response.finished.choices[0].finish_reason)

    def fail(self, code: grpc.StatusCode, text: str) -> None:
        """The stream has ended with an error."""
        assert not self.num_terminals, "an error after the end"
        self.num_terminals += 1
        self.error, self.error_text = code, text

    def note(self) -> None:
        self._changed.set()


def check_replies(replies: Iterable[Reply], *, max_model_len: int = 256) -> None:
    """One terminal event each, no error, and the tokens of a run without any fault."""
    for reply in replies:
        assert reply.num_terminals == 1, "exactly one terminal event"
        assert reply.error is None, reply.error_text
        output, finish = expected_output(reply.asked, max_model_len=max_model_len)
        assert reply.tokens == output
        assert reply.finish is finish


def check_beginning(reply: Reply, *, max_model_len: int = 256) -> None:
    """What a client got of a request that did not run to its end is the beginning of its answer."""
    output, _ = expected_output(reply.asked, max_model_len=max_model_len)
    assert reply.tokens == output[: len(reply.tokens)]


class GrpcClient:
    """Reads every stream in a task of its own."""

    def __init__(self, address: str, *, window_bytes: int = 0) -> None:
        """`window_bytes`: what the server may send unread, where that must not grow."""
        window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", window_bytes)]
        self._channel = grpc.aio.insecure_channel(address, window if window_bytes else None)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._calls: dict[int, Any] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> GrpcClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self._channel.close()
        for reader in self._readers:
            if error is None and not reader.cancelled():
                reader.result()

    def generate(
        self, asked: QueuedRequest, *, stop: tuple[str, ...] = (), timeout_ms: int | None = None
    ) -> Reply:
        """Begins a request; its stream is read as it comes."""
        reply = Reply(asked)
        call = self.stub.Generate(generate_request(asked, stop=stop, timeout_ms=timeout_ms))
        self._calls[id(reply)] = call
        self._readers.append(asyncio.create_task(_read(call, reply)))
        return reply

    def cancel(self, reply: Reply) -> None:
        """As a client that ends its call."""
        self._calls[id(reply)].cancel()

    async def abort(self, request_id: str) -> bool:
        """The Abort RPC."""
        response = await self.stub.Abort(inference_pb2.AbortRequest(request_id=request_id))
        return bool(response.was_live)


async def _read(call: Any, reply: Reply) -> None:
    try:
        async for response in call:
            reply.take(response)
            reply.note()
        if not reply.num_terminals:
            reply.fail(grpc.StatusCode.UNKNOWN, "the stream ended without a word")
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
        if not reply.num_terminals:
            reply.fail(grpc.StatusCode.CANCELLED, "cancelled here")
    except grpc.aio.AioRpcError as error:
        reply.fail(error.code(), error.details() or "")
    finally:
        call.cancel()
        reply.is_over = True
        reply.note()


def generate_request(
    asked: QueuedRequest, *, stop: tuple[str, ...] = (), timeout_ms: int | None = None
) -> inference_pb2.GenerateRequest:
    """As a client of the gRPC edge asks for it."""
    return inference_pb2.GenerateRequest(
        tokens=inference_pb2.TokenIds(ids=asked.prompt_token_ids),
        options=inference_pb2.RequestOptions(
            sampling=types_pb2.SamplingParams(
                max_tokens=asked.max_tokens,
                temperature=1.0,
                seed=asked.sampling.seed,
                ignore_eos=True,
                stop=stop,
            ),
            timeout_ms=timeout_ms,
        ),
    )


class HttpStream:
    """A streamed completion over a bare socket, which the test reads or leaves."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    @classmethod
    async def open(
        cls,
        address: tuple[str, int],
        asked: QueuedRequest,
        *,
        is_streamed: bool = True,
        receive_bytes: int = 0,
    ) -> HttpStream:
        """Sends the request. `receive_bytes`: the receive buffer, where it must be small."""
        connection = socket.socket()
        connection.setblocking(False)
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(connection, address)
        reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 10)
        body = json.dumps(
            {
                "prompt": asked.prompt_token_ids,
                "max_tokens": asked.max_tokens,
                "temperature": 1.0,
                "seed": asked.sampling.seed,
                "ignore_eos": True,
                "stream": is_streamed,
            }
        ).encode()
        writer.write(
            f"POST {TOKENS_PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        return cls(reader, writer)

    async def events(self, count: int) -> list[str]:
        """The next `count` lines of data."""
        found: list[str] = []
        async with asyncio.timeout(WAIT_S):
            while len(found) < count:
                line = await self.reader.readline()
                assert line, "the stream has ended"
                if line.startswith(b"data: "):
                    found.append(line.decode().removeprefix("data: ").strip())
        return found

    async def all_events(self) -> AsyncIterator[str]:
        """The lines of data to the end of the stream."""
        async with asyncio.timeout(WAIT_S):
            while True:
                (event,) = await self.events(1)
                yield event
                if event == "[DONE]":
                    return

    def leave(self) -> None:
        """As a client whose process ends."""
        self._writer.transport.abort()
