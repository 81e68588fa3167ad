"""Clients that ask the same questions over and over, through both edges, and often leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import httpx

from millrace.testing.stack import Stack
from millrace.testing.tokenizers import CORPUS
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2

NUM_QUESTIONS = 16
ANSWER_TIMEOUT_S = 90.0
RETRY_S = 0.25
# To be asked again: the request was not accepted.
REFUSALS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
REFUSAL_STATUSES = (429, 503)


@dataclass(frozen=True)
class Question:
    """A request whose answer is always the same."""

    text: str
    seed: int
    max_tokens: int

    def message(self) -> inference_pb2.GenerateRequest:
        sampling = types_pb2.SamplingParams(
            seed=self.seed, max_tokens=self.max_tokens, temperature=1.0, ignore_eos=True
        )
        options = inference_pb2.RequestOptions(sampling=sampling)
        return inference_pb2.GenerateRequest(text=self.text, options=options)

    def body(self) -> dict[str, Any]:
        return {
            "prompt": self.text,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "temperature": 1.0,
            "ignore_eos": True,
            "stream": True,
        }


class Refused(Exception):
    """The request was not accepted."""


class SoakClients:
    """`learn` the right answers first. What breaks a promise goes to `violations`."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self._random = Random(f"clients {seed}")
        self._channel = grpc.aio.insecure_channel(stack.grpc_address)
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._http = httpx.AsyncClient(base_url=stack.http_url, timeout=ANSWER_TIMEOUT_S)
        self._questions = [
            Question(CORPUS[number % len(CORPUS)][: 8 + 4 * number], number, 16 + 8 * number)
            for number in range(NUM_QUESTIONS)
        ]
        self._answers: dict[Question, str] = {}
        self._began_s = time.monotonic()

    async def aclose(self) -> None:
        await self._http.aclose()
        await self._channel.close()

    async def learn(self) -> None:
        """The answers of a stack without faults."""
        for question in self._questions:
            self._answers[question] = "".join([piece async for piece in self._grpc(question)])

    async def run(self, until_s: float) -> None:
        """One client, one request after the other."""
        while time.monotonic() < until_s:
            question = self._random.choice(self._questions)
            read = self._random.choice((self._grpc, self._http_stream))
            leaves_after = self._random.randrange(20) if self._random.random() < 0.3 else None
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await self._ask(question, read, leaves_after)
            except Refused:
                self.counts["refused"] += 1
                await asyncio.sleep(RETRY_S)
            except TimeoutError:
                self._report(question, f"no end after {ANSWER_TIMEOUT_S} s")
            except (AssertionError, grpc.aio.AioRpcError, httpx.HTTPError) as error:
                self._report(question, repr(error))

    async def _ask(self, question: Question, read: Any, leaves_after: int | None) -> None:
        got = ""
        pieces = read(question)
        async with contextlib.aclosing(pieces):
            num_pieces = 0
            async for piece in pieces:
                got += piece
                num_pieces += 1
                if num_pieces == leaves_after:
                    break
            else:
                leaves_after = None
        right = self._answers[question]
        if leaves_after is None:
            assert got == right, f"{got!r} is not {right!r}"
            self.counts["answered"] += 1
        else:
            assert right.startswith(got), f"{got!r} is not the beginning of {right!r}"
            self.counts["left"] += 1

    async def _grpc(self, question: Question) -> AsyncIterator[str]:
        call = self._stub.Generate(question.message())
        is_accepted = is_finished = False
        try:
            async for response in call:
                assert not is_finished, "something after the end"
                is_accepted = True
                is_finished = response.HasField("finished")
                if response.HasField("delta"):
                    yield response.delta.text
            assert is_finished, "no end"
        except grpc.aio.AioRpcError as error:
            if not is_accepted and error.code() in REFUSALS:
                raise Refused from error
            raise
        finally:
            call.cancel()

    async def _http_stream(self, question: Question) -> AsyncIterator[str]:
        is_finished = False
        async with self._http.stream("POST", "/generate", json=question.body()) as response:
            if response.status_code in REFUSAL_STATUSES:
                raise Refused
            assert response.status_code == 200, response.status_code
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    assert not is_finished, "something after the end"
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    is_finished = "finishReason" in event
                    yield event.get("text", "")
        assert is_finished, "no end"

    def _report(self, question: Question, text: str) -> None:
        at_s = time.monotonic() - self._began_s
        self.violations.append(f"{at_s:.1f} s: question {question.seed}: {text}")
