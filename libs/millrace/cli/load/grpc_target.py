"""Generate of the public gRPC API, as the target of a load."""

from __future__ import annotations

import time
from typing import Any

import grpc

from millrace.core.errors import InternalError
from millrace.rpc.client import open_channel
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from millrace.wire.status import error_from_rpc

from .ask import Ask
from .outcome import Outcome


class GrpcTarget:
    """One channel to a gateway."""

    protocol = "grpc"

    def __init__(self, address: str, *, model: str = "", ignore_eos: bool = True) -> None:
        self._model = model
        self._ignore_eos = ignore_eos
        self._channel = open_channel(address)
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def send(self, ask: Ask, outcome: Outcome) -> None:
        """One request to its end; notes what comes in `outcome`. Raises MillraceError."""
        sampling = types_pb2.SamplingParams(
            max_tokens=ask.num_output_tokens, temperature=0.0, ignore_eos=self._ignore_eos
        )
        options = inference_pb2.RequestOptions(sampling=sampling)
        request = inference_pb2.GenerateRequest(model=self._model, text=ask.prompt, options=options)
        call = self._stub.Generate(request)
        try:
            await _take(call, outcome)
        except grpc.aio.AioRpcError as exc:
            raise error_from_rpc(exc) from exc
        finally:
            call.cancel()


async def _take(call: Any, outcome: Outcome) -> None:
    is_finished = False
    async for event in call:
        kind = event.WhichOneof("event")
        if kind == "delta" and event.delta.text:
            outcome.event_times_s.append(time.monotonic())
        elif kind == "started":
            outcome.request_id = event.started.request_id
            outcome.model = event.started.model
        elif kind == "finished":
            usage = event.finished.usage
            outcome.num_prompt_tokens = usage.num_prompt_tokens
            outcome.num_output_tokens = usage.num_output_tokens
            is_finished = True
    if not is_finished:
        raise InternalError("the stream ended without its last event")
