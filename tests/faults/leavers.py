"""Clients that leave at random moments, in every way that both edges have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

import grpc
import httpx

from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from tests.faults.edge import Edge
from tests.faults.wishes import Reading, Wish

SEEDS_PER_CLIENT = 4
END_TIMEOUT_S = 20.0
T = TypeVar("T")

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
LEFT = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass
class Visit:
    """One client: what it asked for and how it left. `seeds` of all its requests."""

    number: int
    kind: str
    readings: list[Reading] = field(default_factory=list)
    has_left: bool = False

    @property
    def seeds(self) -> list[int]:
        return [reading.wish.seed for reading in self.readings]


class Moment:
    """When a client leaves: after some time, or after some events. `on_left` is called then."""

    def __init__(self, random: Random, on_left: Callable[[], None]) -> None:
        by_time = random.random() < 0.6
        self.after_s = random.choice((0.0, 0.002, 0.05, 0.4)) * random.random() if by_time else 5.0
        self._num_events = 0 if by_time else random.randrange(1, 30)
        self._enough = asyncio.Event()
        self.on_left = on_left

    def count(self, num_events: int) -> None:
        if self._num_events and num_events >= self._num_events:
            self._enough.set()

    async def come(self, reader: asyncio.Task[Any]) -> bool:
        """False where the reply ends before; else the client leaves now."""
        async with _begun(self._enough.wait()) as enough:
            await asyncio.wait(
                (reader, enough), timeout=self.after_s, return_when=asyncio.FIRST_COMPLETED
            )
        if reader.done():
            return False
        self.on_left()
        return True


class Leavers:
    """Both edges of one gateway. `ways` are the names of the ways to leave."""

    def __init__(self, edge: Edge) -> None:
        self._rpc_address = edge.grpc_address
        self._channel = grpc.aio.insecure_channel(edge.grpc_address)
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._host, self._port = edge.http_address
        url = f"http://{self._host}:{self._port}"
        self._http = httpx.AsyncClient(base_url=url, timeout=END_TIMEOUT_S)
        self._ways: dict[str, Callable[[Visit, Random, Moment], Awaitable[None]]] = {
            "stays": self._stay,
            "cancels Generate": self._cancel_generate,
            "cancels Chat": self._cancel_chat,
            "cancels GenerateBatch": self._cancel_batch,
            "closes its channel": self._close_channel,
            "has a gRPC deadline": self._rpc_deadline,
            "has a request deadline": self._request_deadline,
            "aborts by id": self._abort,
            "leaves /generate": self._leave_generate,
            "leaves /v1/chat/completions": self._leave_chat,
            "leaves /v1/completions": self._leave_completions,
            "leaves whole replies": self._leave_whole,
            "leaves in its upload": self._leave_upload,
        }

    @property
    def ways(self) -> list[str]:
        return list(self._ways)

    async def aclose(self) -> None:
        await self._http.aclose()
        await self._channel.close()

    async def visit(self, visit: Visit, random: Random, on_left: Callable[[], None]) -> None:
        """One client from its coming to its going. Raises what no client should see."""

        def leave() -> None:
            visit.has_left = True
            on_left()

        async with asyncio.timeout(END_TIMEOUT_S):
            await self._ways[visit.kind](visit, random, Moment(random, leave))

    # gRPC -------------------------------------------------------------------------------------

    async def _stay(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random)
        await _read(self._stub.Generate(reading.wish.generate()), reading)
        assert reading.is_finished

    async def _cancel_generate(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random)
        await _cancel(self._stub.Generate(reading.wish.generate()), reading, moment)

    async def _cancel_chat(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random, is_chat=True)
        await _cancel(self._stub.Chat(reading.wish.chat()), reading, moment)

    async def _cancel_batch(self, visit: Visit, random: Random, moment: Moment) -> None:
        readings = [_open(visit, random, num_choices=1) for _ in range(3)]
        requests = [reading.wish.generate() for reading in readings]
        call = self._stub.GenerateBatch(inference_pb2.GenerateBatchRequest(requests=requests))
        async with _begun(_read_batch(call, readings, moment)) as reader:
            if await moment.come(reader):
                call.cancel()
            await _ended(reader)

    async def _close_channel(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random)
        channel = grpc.aio.insecure_channel(self._rpc_address, options=OWN_CONNECTION)
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(reading.wish.generate())
        async with _begun(_read(call, reading, moment)) as reader:
            await moment.come(reader)
            await channel.close()
            await _ended(reader)

    async def _rpc_deadline(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random)
        timeout_s = 0.001 + 0.4 * random.random()
        call = self._stub.Generate(reading.wish.generate(), timeout=timeout_s)
        await _outlast(call, reading, moment, timeout_s)

    async def _request_deadline(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random)
        timeout_ms = random.randint(1, 400)
        call = self._stub.Generate(reading.wish.generate(timeout_ms=timeout_ms))
        await _outlast(call, reading, moment, timeout_ms / 1e3)

    async def _abort(self, visit: Visit, random: Random, moment: Moment) -> None:
        """Twice at once as often as not; the stream then ends by itself, with ABORT."""
        reading = _open(visit, random)
        call = self._stub.Generate(reading.wish.generate())
        async with _begun(_read(call, reading, moment)) as reader:
            metadata = dict(await call.initial_metadata())
            request = inference_pb2.AbortRequest(request_id=str(metadata["x-request-id"]))
            if await moment.come(reader):
                times = random.choice((1, 2))
                await asyncio.gather(*(self._stub.Abort(request) for _ in range(times)))
            await _ended(reader)
        assert not (await self._stub.Abort(request)).was_live, "safe when late"

    # HTTP -------------------------------------------------------------------------------------

    async def _leave_generate(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random, num_choices=1, has_token_ids=False)
        body = {"prompt": reading.wish.text, "stream": True, **reading.wish.fields()}
        await self._leave_stream("/generate", body, reading, moment, _plain_piece)

    async def _leave_chat(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random, is_chat=True, has_token_ids=False)
        body = {"messages": [{"role": "user", "content": reading.wish.text}], "stream": True}
        body |= {"n": reading.wish.num_choices, **reading.wish.fields()}
        await self._leave_stream("/v1/chat/completions", body, reading, moment, _chat_piece)

    async def _leave_completions(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random, has_token_ids=False)
        body = {"prompt": reading.wish.text, "stream": True, "n": reading.wish.num_choices}
        body |= reading.wish.fields()
        await self._leave_stream("/v1/completions", body, reading, moment, _completion_piece)

    async def _leave_whole(self, visit: Visit, random: Random, moment: Moment) -> None:
        reading = _open(visit, random, num_choices=1, has_token_ids=False)
        body = {"prompt": reading.wish.text, **reading.wish.fields()}
        async with _begun(self._http.post("/generate", json=body)) as reader:
            if not await moment.come(reader):
                reading.add(0, reader.result().json()["text"])
                reading.is_finished = True

    async def _leave_upload(self, visit: Visit, random: Random, moment: Moment) -> None:
        """Half a body, then nobody: there is no request yet."""
        reading = _open(visit, random, num_choices=1, has_token_ids=False)
        body = json.dumps({"prompt": reading.wish.text, **reading.wish.fields()}).encode()
        _, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(
            b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body[: random.randrange(len(body))]
        )
        await writer.drain()
        await asyncio.sleep(0.05 * random.random())
        moment.on_left()
        writer.close()
        await writer.wait_closed()

    async def _leave_stream(
        self,
        path: str,
        body: dict[str, Any],
        reading: Reading,
        moment: Moment,
        piece: Callable[[dict[str, Any]], tuple[int, str]],
    ) -> None:
        async def read() -> None:
            async with self._http.stream("POST", path, json=body) as response:
                assert response.status_code == 200
                async for event in _events(response):
                    reading.add(*piece(event))
                    reading.num_events += 1
                    moment.count(reading.num_events)
            reading.is_finished = True

        async with _begun(read()) as reader:
            if not await moment.come(reader):
                reader.result()


def _open(
    visit: Visit,
    random: Random,
    *,
    num_choices: int = 0,
    is_chat: bool = False,
    has_token_ids: bool = True,
) -> Reading:
    seed = (visit.number + 1) * SEEDS_PER_CLIENT + len(visit.readings)
    wish = Wish.draw(random, seed, num_choices)
    reading = Reading(wish, is_chat=is_chat, has_token_ids=has_token_ids)
    visit.readings.append(reading)
    return reading


async def _cancel(call: Any, reading: Reading, moment: Moment) -> None:
    async with _begun(_read(call, reading, moment)) as reader:
        if await moment.come(reader):
            call.cancel()
        await _ended(reader)


async def _outlast(call: Any, reading: Reading, moment: Moment, deadline_s: float) -> None:
    """Its deadline ends the call; one that cannot be met is refused at the door."""
    moment.after_s = deadline_s
    async with _begun(_read(call, reading)) as reader:
        await moment.come(reader)
        await _ended(reader, *LEFT, grpc.StatusCode.RESOURCE_EXHAUSTED)


@asynccontextmanager
async def _begun(reading: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Leaves nothing running."""
    task = asyncio.create_task(reading)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _read(call: Any, reading: Reading, moment: Moment | None = None) -> None:
    async for response in call:
        reading.num_events += 1
        if response.HasField("delta"):
            delta = response.delta
            reading.add(delta.choice, delta.text, list(delta.token_ids))
        elif response.HasField("finished"):
            reasons = {choice.finish_reason for choice in response.finished.choices}
            reading.is_finished = types_pb2.FINISH_REASON_ABORT not in reasons
        if moment is not None:
            moment.count(reading.num_events)


async def _read_batch(call: Any, readings: list[Reading], moment: Moment) -> None:
    num_events = 0
    async for response in call:
        assert response.HasField("result"), response
        reading = readings[response.index]
        reading.has_token_ids = False
        reading.add(0, response.result.texts[0])
        reading.is_finished = True
        num_events += 1
        moment.count(num_events)


async def _ended(reader: asyncio.Task[None], *codes: grpc.StatusCode) -> None:
    """The call's end: whole, or cut by its own client or deadline; nothing else."""
    try:
        await reader
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
    except grpc.aio.AioRpcError as error:
        if error.code() not in (codes or LEFT):
            raise


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: {"):
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            yield event


def _plain_piece(event: dict[str, Any]) -> tuple[int, str]:
    return 0, event.get("text", "")


def _chat_piece(event: dict[str, Any]) -> tuple[int, str]:
    choice = event["choices"][0]
    return choice["index"], choice["delta"].get("content") or ""


def _completion_piece(event: dict[str, Any]) -> tuple[int, str]:
    choice = event["choices"][0]
    return choice["index"], choice["text"]
