"""A plain gRPC client of the public API, for the end-to-end tests."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from millrace.internal.v1 import (
    bus_pb2,
    cache_pb2,
    cache_pb2_grpc,
    scheduler_pb2,
    scheduler_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from millrace.testing.gaps import waits_s
from millrace.testing.stack import Stack
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2

TIMEOUT_S = 300.0


@dataclass
class Answer:
    """Everything one stream said."""

    request_id: str = ""
    num_prompt_tokens: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    finished: inference_pb2.Finished | None = None
    started_s: float = 0.0
    token_times_s: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.texts.get(0, "")

    @property
    def tokens(self) -> list[int]:
        return self.token_ids.get(0, [])

    @property
    def longest_wait_s(self) -> float:
        return max(waits_s(self.started_s, self.token_times_s))

    @property
    def ended_s(self) -> float:
        return self.token_times_s[-1]


class Client:
    """One channel to a stack."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._channel = grpc.aio.insecure_channel(
            stack.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def ask(
        self,
        *,
        text: str = "",
        token_ids: list[int] | None = None,
        messages: list[dict[str, str]] | None = None,
        cache: types_pb2.CacheMode | int = types_pb2.CACHE_MODE_BYPASS,
        into: Answer | None = None,
        **sampling: Any,
    ) -> Answer:
        """One request to its end; greedy unless told otherwise. `into` fills as it goes."""
        params = types_pb2.SamplingParams(**{"temperature": 0.0, **sampling})
        options = inference_pb2.RequestOptions(sampling=params, cache=cache)  # type: ignore[arg-type]
        answer = into or Answer()
        answer.started_s = time.monotonic()
        async for event in self._call(text, token_ids, messages, options):
            kind = event.WhichOneof("event")
            if kind == "started":
                answer.request_id = event.started.request_id
                answer.num_prompt_tokens = event.started.num_prompt_tokens
            elif kind == "delta":
                choice = event.delta.choice
                answer.texts[choice] = answer.texts.get(choice, "") + event.delta.text
                answer.token_ids.setdefault(choice, []).extend(event.delta.token_ids)
                answer.token_times_s.append(time.monotonic())
            else:
                answer.finished = event.finished
        return answer

    def _call(
        self,
        text: str,
        token_ids: list[int] | None,
        messages: list[dict[str, str]] | None,
        options: inference_pb2.RequestOptions,
    ) -> Any:
        if messages:
            turns = [types_pb2.Message(**message) for message in messages]
            chat = inference_pb2.ChatRequest(messages=turns, options=options)
            return self._stub.Chat(chat, timeout=TIMEOUT_S)
        if token_ids is not None:
            tokens = inference_pb2.TokenIds(ids=token_ids)
            request = inference_pb2.GenerateRequest(tokens=tokens, options=options)
        else:
            request = inference_pb2.GenerateRequest(text=text, options=options)
        return self._stub.Generate(request, timeout=TIMEOUT_S)

    async def scheduler_stats(self) -> scheduler_pb2.GetStatsResponse:
        """Counters of the scheduler behind the stack."""
        async with grpc.aio.insecure_channel(self._stack.address_of("scheduler")) as channel:
            stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            response: scheduler_pb2.GetStatsResponse = await stub.GetStats(
                scheduler_pb2.GetStatsRequest(), timeout=5
            )
            return response

    async def worker_load(self, name: str) -> bus_pb2.WorkerLoad:
        """What a worker says of itself; `name` as the stack calls it."""
        async with grpc.aio.insecure_channel(self._stack.address_of(name)) as channel:
            stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
            response = await stub.GetInfo(worker_pb2.GetInfoRequest(), timeout=5)
            load: bus_pb2.WorkerLoad = response.load
            return load

    async def until_idle(self, timeout_s: float = 5.0) -> scheduler_pb2.GetStatsResponse:
        """The counters once no sequence is there and no block is owned; fails after `timeout_s`.

        A row's blocks are back with the result of the plan that releases it, one step after its
        last token.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            stats = await self.scheduler_stats()
            num_used = sum(worker.num_used_blocks for worker in stats.workers)
            if stats.status.num_running == stats.status.num_waiting == num_used == 0:
                return stats
            assert time.monotonic() < deadline, f"{num_used} blocks are still in use: {stats}"
            await asyncio.sleep(0.05)

    async def num_response_cache_hits(self) -> int:
        """Answers that came from the response cache since the stack started."""
        async with grpc.aio.insecure_channel(self._stack.address_of("cache")) as channel:
            stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
            response = await stub.GetCacheStats(cache_pb2.GetCacheStatsRequest(), timeout=5)
            return int(response.num_hits)
