"""A gateway that answers from a script, and the command run against it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from millrace.core.chat import NO_CHAT_TEMPLATE
from millrace.core.errors import CODE_KEY, InvalidRequest
from millrace.rpc.server import RpcServer
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2

# A shell's background job ignores SIGINT and hands that on to every process below it.
HEAR_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("millrace.cli", run_name="__main__")
"""
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass
class FakeGateway(inference_pb2_grpc.InferenceServiceServicer):
    """Answers every chat with how many turns it saw; "hang" never ends, "bad" is refused."""

    chats: list[list[str]] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    num_cancelled: int = 0
    lacks_template: bool = False
    sampling: list[types_pb2.SamplingParams] = field(default_factory=list)

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[inference_pb2.ChatResponse]:
        self.chats.append([f"{turn.role}: {turn.content}" for turn in request.messages])
        said = request.messages[-1].content
        if said == "bad":
            raise InvalidRequest("messages is bad; say something else", field="messages")
        if self.lacks_template:
            raise InvalidRequest(
                "the model has no chat template; send a plain prompt",
                metadata={CODE_KEY: NO_CHAT_TEMPLATE},
            )
        self.sampling.append(request.options.sampling)
        await context.send_initial_metadata((("traceresponse", f"00-{TRACE_ID}-00f067aa-01"),))
        yield inference_pb2.ChatResponse(started=_started())
        yield inference_pb2.ChatResponse(delta=_delta(f"{len(request.messages)} "))
        try:
            if said == "hang":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        yield inference_pb2.ChatResponse(delta=_delta("turns"))
        yield inference_pb2.ChatResponse(finished=_finished())

    async def Generate(
        self, request: Any, context: Any
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.prompts.append(request)
        yield inference_pb2.GenerateResponse(started=_started())
        yield inference_pb2.GenerateResponse(delta=_delta("and so "))
        yield inference_pb2.GenerateResponse(delta=_delta("on"))
        yield inference_pb2.GenerateResponse(finished=_finished())


def _started() -> inference_pb2.Started:
    return inference_pb2.Started(request_id="ab" * 16, model="fake", num_prompt_tokens=3, seed=7)


def _delta(text: str) -> inference_pb2.Delta:
    return inference_pb2.Delta(text=text, token_ids=[1])


def _finished() -> inference_pb2.Finished:
    return inference_pb2.Finished(
        choices=[inference_pb2.ChoiceFinished(finish_reason=types_pb2.FINISH_REASON_STOP)],
        usage=types_pb2.Usage(num_prompt_tokens=3, num_output_tokens=2),
    )


@asynccontextmanager
async def started_gateway() -> AsyncIterator[tuple[FakeGateway, str]]:
    make: Any = FakeGateway
    fake: FakeGateway = make()
    server = RpcServer("gateway", "127.0.0.1", 0)
    add: Any = inference_pb2_grpc.add_InferenceServiceServicer_to_server
    server.add(add, fake, "millrace.v1.InferenceService")
    address = await server.start()
    try:
        yield fake, address
    finally:
        await server.stop(0.1)


async def run_millrace(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    process = await start_millrace(*arguments)
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 30)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def start_millrace(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command(*arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OTEL_SDK_DISABLED": "true"},
    )


def command(*arguments: str, before: str = "") -> list[str]:
    """Runs `before` first in the new process: gRPC here does not survive Python after a fork."""
    return [sys.executable, "-c", f"{before}\n{HEAR_CTRL_C}", *arguments]
