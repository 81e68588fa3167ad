"""Streams against a stack, over gRPC or HTTP, and what a client sees of them."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx

from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2

MIN_PROMPT_TOKENS = 30
MAX_PROMPT_TOKENS = 700
TIMEOUT_S = 600.0
STAGGER_S = 0.01
WORDS = ("the", "water", "wheel", "turns", "and", "river", "runs", "past", "old", "stone", "mill")


@dataclass(frozen=True, slots=True)
class Stream:
    """One answered request: times are monotonic seconds, one per event that brought text."""

    started_s: float
    event_times_s: Sequence[float]
    num_prompt_tokens: int
    num_output_tokens: int
    request_id: str = ""

    @property
    def ttft_s(self) -> float:
        """Sent to first text."""
        return self.event_times_s[0] - self.started_s

    @property
    def gaps_s(self) -> list[float]:
        """Between one text and the next."""
        times = self.event_times_s
        return [after - before for before, after in zip(times, times[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Load:
    """What a number of streams did together."""

    protocol: str
    num_streams: int
    elapsed_s: float
    client_cpu_s: float
    streams: list[Stream]

    def figures(self) -> dict[str, Any]:
        """Rates and percentiles; milliseconds."""
        gaps = [gap for stream in self.streams for gap in stream.gaps_s]
        firsts = [stream.ttft_s for stream in self.streams]
        num_output = sum(stream.num_output_tokens for stream in self.streams)
        num_prompt = sum(stream.num_prompt_tokens for stream in self.streams)
        return {
            "protocol": self.protocol,
            "streams": self.num_streams,
            "requests": len(self.streams),
            "mean_prompt_tokens": round(num_prompt / len(self.streams), 1),
            "tokens_per_s": round(num_output / self.elapsed_s, 2),
            "prompt_and_output_tokens_per_s": round((num_prompt + num_output) / self.elapsed_s, 2),
            "ttft_ms_p50": milliseconds(percentile(firsts, 50)),
            "ttft_ms_p99": milliseconds(percentile(firsts, 99)),
            "itl_ms_p50": milliseconds(percentile(gaps, 50)),
            "itl_ms_p99": milliseconds(percentile(gaps, 99)),
            "client_cpu_ms_per_token": round(1000 * self.client_cpu_s / num_output, 3),
        }


@dataclass
class Prompts:
    """Texts of 30 to 700 tokens, evenly spread; no two begin alike, so none finds a prefix."""

    seed: int = 0
    min_tokens: int = MIN_PROMPT_TOKENS
    max_tokens: int = MAX_PROMPT_TOKENS
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def draw(self, count: int) -> list[str]:
        """So many texts; about one token to a word."""
        span = self.max_tokens - self.min_tokens
        lengths = [self.min_tokens + round(span * (index + 0.5) / count) for index in range(count)]
        self._random.shuffle(lengths)
        return [self._text(length) for length in lengths]

    def _text(self, num_tokens: int) -> str:
        mark = f"{self._random.getrandbits(32):08x}"
        # The mark is about six tokens.
        return " ".join([mark, *self._random.choices(WORDS, k=max(1, num_tokens - 6))])


class GrpcTarget:
    """The public gRPC API."""

    protocol = "grpc"

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def ask(self, text: str, num_tokens: int) -> Stream:
        """One request to its end, `num_tokens` long."""
        sampling = types_pb2.SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        request = inference_pb2.GenerateRequest(
            text=text, options=inference_pb2.RequestOptions(sampling=sampling)
        )
        started_s, times_s, request_id = time.monotonic(), [], ""
        usage = types_pb2.Usage()
        async for event in self._stub.Generate(request, timeout=TIMEOUT_S):
            kind = event.WhichOneof("event")
            if kind == "delta" and event.delta.text:
                times_s.append(time.monotonic())
            elif kind == "started":
                request_id = event.started.request_id
            elif kind == "finished":
                usage = event.finished.usage
        return Stream(
            started_s, times_s, usage.num_prompt_tokens, usage.num_output_tokens, request_id
        )


class HttpTarget:
    """`/v1/completions`, streamed."""

    protocol = "http"

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def ask(self, text: str, num_tokens: int) -> Stream:
        """One request to its end, `num_tokens` long."""
        body = {
            "prompt": text,
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started_s = time.monotonic()
        times_s, last = [], b""
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise RuntimeError(f"HTTP {response.status_code}: {await response.aread()!r}")
            async for event in _events(response):
                if b'"choices":[{' in event and b'"finish_reason":null' in event:
                    times_s.append(time.monotonic())
                elif event != b"[DONE]":
                    last = event
        usage = json.loads(last)["usage"]
        return Stream(started_s, times_s, usage["prompt_tokens"], usage["completion_tokens"])


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each server-sent event."""
    rest = b""
    async for piece in response.aiter_raw():
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                yield event[6:]


async def run_load(
    target: GrpcTarget | HttpTarget, prompts: Sequence[str], num_streams: int, num_tokens: int
) -> Load:
    """`num_streams` clients, each asking for one prompt after another until all are answered."""
    waiting = list(reversed(prompts))
    streams: list[Stream] = []

    async def client(number: int) -> None:
        await asyncio.sleep(number * STAGGER_S)
        while waiting:
            streams.append(await target.ask(waiting.pop(), num_tokens))

    started_s, started_cpu_s = time.monotonic(), time.process_time()
    await asyncio.gather(*(client(number) for number in range(num_streams)))
    elapsed_s, cpu_s = time.monotonic() - started_s, time.process_time() - started_cpu_s
    return Load(target.protocol, num_streams, elapsed_s, cpu_s, streams)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; 0 without values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def milliseconds(seconds: float) -> float:
    """To a hundredth."""
    return round(seconds * 1000, 2)
