"""One streamed answer over the public gRPC API, measured at this end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from millrace.config.environment import current_environment
from millrace.config.home import millrace_home
from millrace.core.errors import InternalError, MillraceError, Unavailable
from millrace.core.own_command import own_command
from millrace.core.request_fields.field import FieldNames
from millrace.core.sampling import SamplingParams, unsigned_seed
from millrace.rpc.client import open_channel, proxy_options
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from millrace.wire.status import error_from_rpc

from .last_request import note_request
from .proxies import named_proxies
from .stack.run_file import running_stack

DEFAULT_ADDRESS = "127.0.0.1:50051"


@dataclass(slots=True)
class Answer:
    """What came back: the text of the first choice, counts, times in seconds as seen here."""

    request_id: str = ""
    trace_id: str = ""
    model: str = ""
    text: str = ""
    finish_reason: str = ""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    is_cached: bool = False
    seed: int = 0
    ttft_s: float = 0.0
    total_s: float = 0.0
    token_ids: list[int] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens after the first, per second; 0 for fewer than two."""
        decode_s = self.total_s - self.ttft_s
        return (self.num_output_tokens - 1) / decode_s if decode_s > 0 and self.text else 0.0

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.num_output_tokens} tokens, first after {self.ttft_s * 1000:.0f} ms, "
            f"{self.tokens_per_s:.1f} tokens/s, {self.finish_reason}"
        )

    def trace_hint(self) -> str:
        """What to type to see where the time went."""
        return f"  trace {self.trace_id}: {own_command(f'trace {self.trace_id}')}"


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Sampling as the command line gives it; None leaves a field to the server."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    stop: tuple[str, ...] | None = None

    def given(self) -> dict[str, Any]:
        """The values that are there, by name."""
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return {name: value for name, value in values if value is not None}

    def params(self, *, is_by_flag: bool = True) -> SamplingParams:
        """As the engine takes them. Raises `InvalidRequest` naming the flag, or else the field."""
        fields = self.__dataclass_fields__ if is_by_flag else ()
        names = FieldNames({name: flag_of(name) for name in fields})
        return SamplingParams(**self.given(), names=names)

    def to_proto(self) -> types_pb2.SamplingParams:
        """As the wire has it. Raises `InvalidRequest` naming the flag."""
        self.params()
        values = self.given()
        if self.seed is not None:
            values["seed"] = unsigned_seed(self.seed)
        return types_pb2.SamplingParams(**values)


def flag_of(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def default_address() -> str:
    """The running stack's gRPC endpoint, else the well-known one."""
    record = running_stack(millrace_home())
    return record.endpoints.get("grpc", DEFAULT_ADDRESS) if record else DEFAULT_ADDRESS


class InferenceClient:
    """Generate and Chat on one gateway."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._may_use_proxy = not proxy_options(address, may_use_proxy=True)
        self._channel = open_channel(address, may_use_proxy=True)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    async def generate(
        self, prompt: str, model: str, sampling: SamplingOptions, on_text: Callable[[str], None]
    ) -> Answer:
        """Continues a prompt; `on_text` gets each piece. Raises `MillraceError`."""
        options = inference_pb2.RequestOptions(sampling=sampling.to_proto())
        request = inference_pb2.GenerateRequest(model=model, text=prompt, options=options)
        return await self._take(self._stub.Generate(request), on_text)

    async def chat(
        self,
        messages: Sequence[tuple[str, str]],
        model: str,
        sampling: SamplingOptions,
        on_text: Callable[[str], None],
    ) -> Answer:
        """Answers a conversation of (role, content). Raises `MillraceError`."""
        turns = [types_pb2.Message(role=role, content=content) for role, content in messages]
        options = inference_pb2.RequestOptions(sampling=sampling.to_proto())
        request = inference_pb2.ChatRequest(model=model, messages=turns, options=options)
        return await self._take(self._stub.Chat(request), on_text)

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    async def _take(self, call: Any, on_text: Callable[[str], None]) -> Answer:
        began, answer = time.monotonic(), Answer()
        pieces: list[str] = []
        try:
            metadata = await call.initial_metadata()
            answer.trace_id = _trace_id(metadata)
            answer.request_id = _value(metadata, "x-request-id")
            async for event in call:
                now_s = time.monotonic() - began
                _apply(answer, event, pieces, on_text, now_s)
        except grpc.aio.AioRpcError as exc:
            raise self._error(exc) from exc
        finally:
            call.cancel()
            self._note(answer.request_id)
        if not answer.finish_reason:
            raise InternalError("the stream ended without its last event")
        answer.text = "".join(pieces)
        answer.total_s = time.monotonic() - began
        return answer

    def _note(self, request_id: str) -> None:
        """`millrace trace --last` means this one, if it ran on the stack of this home."""
        home = millrace_home()
        record = running_stack(home)
        if request_id and record is not None and record.endpoints.get("grpc") == self.address:
            note_request(home, request_id)

    def _error(self, exc: grpc.aio.AioRpcError) -> MillraceError:
        error = error_from_rpc(exc)
        if exc.code() is grpc.StatusCode.UNAVAILABLE and not exc.trailing_metadata():
            proxies = ", ".join(named_proxies(current_environment()))
            through = f" (a proxy is set: {proxies})" if proxies and self._may_use_proxy else ""
            return Unavailable(
                f"nobody answers at {self.address}{through}; start a stack with "
                f"`{own_command('up')}` or name one with --address"
            )
        return error


def _apply(
    answer: Answer, event: Any, pieces: list[str], on_text: Callable[[str], None], now_s: float
) -> None:
    kind = event.WhichOneof("event")
    if kind == "started":
        answer.request_id, answer.model = event.started.request_id, event.started.model
        answer.seed = event.started.seed
    elif kind == "delta" and event.delta.choice == 0:
        if not answer.token_ids:
            answer.ttft_s = now_s
        answer.token_ids.extend(event.delta.token_ids)
        pieces.append(event.delta.text)
        on_text(event.delta.text)
    elif kind == "finished":
        finished = event.finished
        usage = finished.usage
        answer.num_prompt_tokens = usage.num_prompt_tokens
        answer.num_output_tokens = usage.num_output_tokens
        answer.num_cached_tokens = usage.num_cached_tokens
        answer.is_cached = finished.cached
        reason = finished.choices[0].finish_reason if finished.choices else None
        name = types_pb2.FinishReason.Name(reason) if reason else "unknown"
        answer.finish_reason = name.removeprefix("FINISH_REASON_").lower()


def _trace_id(metadata: Any) -> str:
    """The trace id from `traceresponse`, which looks like 00-<trace id>-<span id>-01."""
    parts = _value(metadata, "traceresponse").split("-")
    return parts[1] if len(parts) == 4 else ""


def _value(metadata: Any, wanted: str) -> str:
    return next((str(value) for key, value in metadata or () if key == wanted), "")
