"""The gRPC edge: convert, call, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from millrace.core.chat import ChatMessage
from millrace.core.errors import InvalidRequest, MillraceError, PayloadTooLarge
from millrace.core.request import Priority
from millrace.core.request_fields.ignored import IgnoredFields
from millrace.core.sampling import SamplingParams, unsigned_seed
from millrace.telemetry.names import OPERATION_CHAT, OPERATION_TEXT_COMPLETION
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from millrace.wire.status import status_number

from .batch import Outcome, check_batch_size, run_batch
from .calls import Call, begin_call, begin_untraced_call
from .directory import ModelDirectory, ServedModel
from .events import (
    ChoiceFinished,
    Delta,
    Event,
    Finished,
    PositionLogprobs,
    Started,
    TokenLogprob,
)
from .generation import MAX_MESSAGES, CacheMode, GenerationRequest, check_num_messages
from .pipeline import Pipeline

SERVICE_NAME = "millrace.v1.InferenceService"
# A client that has fallen behind may still take what is buffered for so long, then its call is cut.
CUT_GRACE_S = 10.0
# What a gRPC client takes unless it is told otherwise.
DEFAULT_MAX_REPLY_BYTES = 4 << 20

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", inference_pb2.GenerateResponse, inference_pb2.ChatResponse)

_REPEATED = {"stop", "stop_token_ids"}
_CACHE_MODES = {
    types_pb2.CACHE_MODE_UNSPECIFIED: CacheMode.BYPASS,
    types_pb2.CACHE_MODE_BYPASS: CacheMode.BYPASS,
    types_pb2.CACHE_MODE_USE: CacheMode.USE,
    types_pb2.CACHE_MODE_REFRESH: CacheMode.REFRESH,
}


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """`millrace.v1.InferenceService`; x-request-id and traceresponse go with every reply."""

    def __init__(
        self,
        pipeline: Pipeline,
        directory: ModelDirectory,
        *,
        max_batch_size: int = 1024,
        max_batch_concurrency: int = 256,
        max_request_bytes: int = 8 << 20,
    ) -> None:
        self._pipeline = pipeline
        self._max_request_bytes = max_request_bytes
        self._directory = directory
        self._max_batch_size = max_batch_size
        self._max_batch_concurrency = max_batch_concurrency

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Continues a prompt."""
        call = begin_call(OPERATION_TEXT_COMPLETION, _carrier(context))
        self._pipeline.tell_ignored(call, _unknown_fields([request]))
        events = self._events(lambda: _generate_from_proto(self._sized(request)), call, context)
        async for event in events:
            response = _event_to_proto(event, inference_pb2.GenerateResponse)
            if response is not None:
                yield response

    async def Chat(
        self, request: inference_pb2.ChatRequest, context: Context
    ) -> AsyncIterator[inference_pb2.ChatResponse]:
        """Answers a conversation."""
        call = begin_call(OPERATION_CHAT, _carrier(context))
        self._pipeline.tell_ignored(call, _unknown_fields([request], request.messages))
        events = self._events(lambda: _chat_from_proto(self._sized(request)), call, context)
        async for event in events:
            response = _event_to_proto(event, inference_pb2.ChatResponse)
            if response is not None:
                yield response

    async def GenerateBatch(
        self, request: inference_pb2.GenerateBatchRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateBatchResponse]:
        """Runs many prompts."""
        call = begin_call(OPERATION_TEXT_COMPLETION, _carrier(context))
        self._pipeline.tell_ignored(call, _unknown_fields(request.requests, [request]))
        await context.send_initial_metadata(call.headers)
        _on_done(context, call.end)
        self._sized(request)
        check_batch_size(len(request.requests), self._max_batch_size)
        requests = [_tried(each) for each in request.requests]
        outcomes = run_batch(
            self._pipeline, requests, call, max_concurrency=self._max_batch_concurrency
        )
        async for outcome in outcomes:
            yield _outcome_to_proto(outcome)

    async def Abort(
        self, request: inference_pb2.AbortRequest, context: Context
    ) -> inference_pb2.AbortResponse:
        """Ends a request by its id."""
        await _begin_untraced(context)
        request_id = request.request_id
        if len(request_id) != 32 or not set(request_id) <= set("0123456789abcdef"):
            raise InvalidRequest(
                f"request_id is {request_id[:64]!r}; it must be 32 hexadecimal digits",
                field="request_id",
            )
        return inference_pb2.AbortResponse(was_live=await self._pipeline.abort(request_id))

    async def CountTokens(
        self, request: inference_pb2.CountTokensRequest, context: Context
    ) -> inference_pb2.CountTokensResponse:
        """Counts the tokens of a prompt."""
        await _begin_untraced(context)
        kind = self._sized(request).WhichOneof("input")
        asked = GenerationRequest(
            model=request.model,
            text=request.text if kind == "text" else None,
            messages=_messages(request.conversation.messages) if kind == "conversation" else None,
        )
        max_ids: int | None = DEFAULT_MAX_REPLY_BYTES  # an id takes a byte or more
        if request.HasField("with_token_ids"):
            max_ids = None if request.with_token_ids else 0
        counted = await self._pipeline.count_tokens(asked, max_ids=max_ids)
        response = inference_pb2.CountTokensResponse(
            num_tokens=counted.num_tokens, token_ids=counted.token_ids
        )
        if max_ids is not None and response.ByteSize() > DEFAULT_MAX_REPLY_BYTES:
            response.ClearField("token_ids")
        return response

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: Context
    ) -> inference_pb2.ListModelsResponse:
        """Lists the models, the default one first."""
        await _begin_untraced(context)
        models = [_model_to_proto(model) for model in self._directory.list()]
        return inference_pb2.ListModelsResponse(models=models)

    async def GetModel(
        self, request: inference_pb2.GetModelRequest, context: Context
    ) -> inference_pb2.GetModelResponse:
        """Describes one model."""
        await _begin_untraced(context)
        name = request.name or request.model
        if request.model not in ("", name):
            raise InvalidRequest(
                f"name is {name[:64]!r} and model is {request.model[:64]!r}; give one of them",
                field="model",
            )
        return inference_pb2.GetModelResponse(model=_model_to_proto(self._directory.get(name)))

    def _sized(self, request: Request) -> Request:
        """The request. Raises `PayloadTooLarge` before anything is made of it."""
        size = request.ByteSize()
        if size > self._max_request_bytes:
            raise PayloadTooLarge(
                f"the request has {size} bytes; the limit is {self._max_request_bytes}",
                metadata={"value": str(size), "max": str(self._max_request_bytes)},
            )
        return request

    async def _events(
        self, convert: Callable[[], GenerationRequest], call: Call, context: Context
    ) -> AsyncIterator[Event]:
        error: MillraceError | None = None
        # On its way while the request is opened; events and errors wait for it.
        metadata = asyncio.ensure_future(context.send_initial_metadata(call.headers))
        try:
            answer = await self._pipeline.open(convert(), call)
            # The generator may be dropped without being closed; the call's end is always told.
            _on_done(context, answer.abandon)
            answer.on_cut = _cutter()
            try:
                await metadata
                async for event in answer:
                    yield event
            finally:
                answer.abandon()
        except MillraceError as raised:
            error = raised
            raise
        finally:
            call.end(error)
            # A client that has gone meanwhile is no news here.
            await asyncio.gather(metadata, return_exceptions=True)


def _on_done(context: Context, action: Callable[[], None]) -> None:
    def ended(_: Any) -> None:
        action()

    context.add_done_callback(cast(Any, ended))


def _cutter() -> Callable[[], None]:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()

    def cut() -> None:
        if task is not None:
            loop.call_later(CUT_GRACE_S, task.cancel)

    return cut


async def _begin_untraced(context: Context) -> None:
    await context.send_initial_metadata(begin_untraced_call(_carrier(context)).headers)


def _carrier(context: Context) -> Mapping[str, str]:
    metadata = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if isinstance(value, str)}


def _unknown_fields(
    requests: Iterable[inference_pb2.GenerateRequest | inference_pb2.ChatRequest],
    others: Iterable[Message] = (),
) -> IgnoredFields:
    """What a newer client may say that this server does not know, by number: it has no name.

    Of so many messages as a request may have; more are refused.
    """
    ignored = IgnoredFields()
    for each in islice(requests, MAX_MESSAGES):
        for part in (each, each.options, each.options.sampling):
            _add_unknown(part, ignored)
    for message in islice(others, MAX_MESSAGES):
        _add_unknown(message, ignored)
    return ignored


def _add_unknown(message: Message, ignored: IgnoredFields) -> None:
    unknown = UnknownFieldSet(message)
    for index in range(len(unknown)):
        path = f"{message.DESCRIPTOR.name}.{unknown[index].field_number}"
        ignored.add(path, is_harmless=False)


def _generate_from_proto(request: inference_pb2.GenerateRequest) -> GenerationRequest:
    kind = request.WhichOneof("prompt")
    return GenerationRequest(
        model=request.model,
        text=request.text if kind == "text" else None,
        token_ids=tuple(request.tokens.ids) if kind == "tokens" else None,
        is_streamed=True,
        **_options(request.options),
    )


def _chat_from_proto(request: inference_pb2.ChatRequest) -> GenerationRequest:
    return GenerationRequest(
        model=request.model,
        messages=_messages(request.messages),
        is_streamed=True,
        **_options(request.options),
    )


def _tried(request: inference_pb2.GenerateRequest) -> GenerationRequest | MillraceError:
    try:
        return _generate_from_proto(request)
    except MillraceError as error:
        return error


def _messages(messages: Sequence[types_pb2.Message]) -> tuple[ChatMessage, ...]:
    check_num_messages(len(messages))
    return tuple(
        ChatMessage(each.role, each.content, each.name if each.HasField("name") else None)
        for each in messages
    )


def _options(options: inference_pb2.RequestOptions) -> dict[str, Any]:
    if options.priority not in (0, *Priority):
        raise InvalidRequest(
            f"priority is {options.priority}; allowed are 0 to 3", field="priority"
        )
    if options.cache not in _CACHE_MODES:
        raise InvalidRequest(f"cache is {options.cache}; allowed are 0 to 3", field="cache")
    return {
        "sampling": _sampling(options.sampling),
        "priority": Priority(options.priority or Priority.NORMAL),
        "timeout_ms": options.timeout_ms if options.HasField("timeout_ms") else None,
        "cache": _CACHE_MODES[options.cache],
        "idempotency_key": (
            options.idempotency_key if options.HasField("idempotency_key") else None
        ),
    }


def _sampling(message: types_pb2.SamplingParams) -> SamplingParams:
    # Only what is there, however many fields there are; the table says what each may be.
    given: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    for name in _REPEATED & given.keys():
        given[name] = tuple(given[name])
    if message.logit_bias:
        given["logit_bias"] = tuple(message.logit_bias.items())
    return SamplingParams(**given)


def _event_to_proto(event: Event, response: type[Response]) -> Response | None:
    if isinstance(event, Delta):
        return response(
            delta=inference_pb2.Delta(
                choice=event.choice,
                text=event.text,
                token_ids=event.token_ids,
                logprobs=[_position_to_proto(position) for position in event.logprobs],
            )
        )
    if isinstance(event, Started):
        return response(
            started=inference_pb2.Started(
                request_id=event.request_id,
                model=event.model,
                num_prompt_tokens=event.num_prompt_tokens,
                seed=unsigned_seed(event.seed),
                sampling=types_pb2.SamplingParams(**event.sampling.given()),
            )
        )
    if isinstance(event, Finished):
        return response(finished=_finished_to_proto(event))
    return None


def _finished_to_proto(event: Finished) -> inference_pb2.Finished:
    return inference_pb2.Finished(
        choices=[_choice_to_proto(choice) for choice in event.choices],
        usage=types_pb2.Usage(
            num_prompt_tokens=event.usage.num_prompt_tokens,
            num_output_tokens=event.usage.num_output_tokens,
            num_cached_tokens=event.usage.num_cached_tokens,
        ),
        timings=types_pb2.Timings(
            queue_ns=event.timings.queue_ns,
            time_to_first_token_ns=event.timings.time_to_first_token_ns,
            total_ns=event.timings.total_ns,
        ),
        cached=event.is_cached,
    )


def _choice_to_proto(choice: ChoiceFinished) -> inference_pb2.ChoiceFinished:
    return inference_pb2.ChoiceFinished(
        choice=choice.choice,
        finish_reason=types_pb2.FinishReason.ValueType(choice.finish_reason),
        matched_stop=choice.matched_stop,
        num_output_tokens=choice.num_output_tokens,
    )


def _position_to_proto(position: PositionLogprobs) -> types_pb2.PositionLogprobs:
    return types_pb2.PositionLogprobs(
        chosen=_logprob_to_proto(position.chosen),
        top=[_logprob_to_proto(entry) for entry in position.top],
    )


def _logprob_to_proto(entry: TokenLogprob) -> types_pb2.TokenLogprob:
    return types_pb2.TokenLogprob(
        token_id=entry.token_id, text=entry.text, logprob=entry.logprob, raw=entry.raw
    )


def _outcome_to_proto(outcome: Outcome) -> inference_pb2.GenerateBatchResponse:
    if outcome.answer is not None:
        return inference_pb2.GenerateBatchResponse(
            index=outcome.index,
            result=inference_pb2.BatchResult(
                request_id=outcome.request_id,
                texts=outcome.answer.texts,
                finished=_finished_to_proto(outcome.answer.finished),
            ),
        )
    error = outcome.error or MillraceError("the request did not run")
    return inference_pb2.GenerateBatchResponse(
        index=outcome.index,
        error=inference_pb2.BatchError(
            code=status_number(error), reason=error.reason, message=error.message
        ),
    )


def _model_to_proto(model: ServedModel) -> inference_pb2.Model:
    info = model.info
    return inference_pb2.Model(
        name=info.name,
        aliases=info.aliases,
        max_model_len=info.max_model_len,
        dtype=info.dtype,
        revision=info.revision,
        num_workers=model.num_workers,
        num_parameters=info.num_parameters,
        weight_bytes=info.weight_bytes,
        quantization=info.quantization,
        architecture=info.architecture,
        route=info.route,
        vocab_size=info.vocab_size,
        default_sampling=types_pb2.SamplingParams(**info.default_sampling.filled().given()),
    )
