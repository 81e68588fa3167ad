"""The plain routes: POST /generate, POST /generate/batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from millrace.core.errors import Aborted, InvalidRequest, MillraceError
from millrace.core.request_fields.field import Kind, Place
from millrace.core.request_fields.ignored import IgnoredFields
from millrace.gateway.answers import Answer, WholeAnswer, read_whole
from millrace.gateway.batch import Outcome, check_batch_size, run_batch
from millrace.gateway.calls import Call
from millrace.gateway.events import Delta, Finished, Started
from millrace.gateway.generation import GenerationRequest

from .body import read_json
from .edge import HttpEdge, call_of, telling_ignored, while_connected
from .errors import error_body
from .fields import wrong_value
from .parameters import refuse_header_key, request_options, sampling_params, with_header_key
from .reading import read_fields
from .replies import camel_cased, finish_reason_text
from .sse import DONE, EventStream, data_event

GENERATE_PATH = "/generate"
BATCH_PATH = "/generate/batch"


def plain_routes(edge: HttpEdge) -> list[Route]:
    """Both routes."""

    async def generate(request: Request) -> Any:
        body = await read_json(request, edge.max_body_bytes)
        call = call_of(request)
        with telling_ignored(edge, call) as ignored:
            parsed = parse_generate(with_header_key(request, body), ignored)
        if not parsed.is_streamed:
            return await while_connected(request, _whole(edge, parsed, call))
        answer = await while_connected(request, edge.pipeline.open(parsed, call), is_streamed=True)
        return EventStream(
            generate_chunks(answer, call),
            answer.abandon,
            ping_interval_s=edge.ping_interval_s,
            write_timeout_s=edge.write_timeout_s,
        )

    async def batch(request: Request) -> JSONResponse:
        refuse_header_key(request)
        body = await read_json(request, edge.max_body_bytes)
        call = call_of(request)
        with telling_ignored(edge, call) as ignored:
            items = read_fields(Place.BATCH, body, ignored).require("requests")
            check_batch_size(len(items), edge.max_batch_size)
            parsed = [_tried(item, index, ignored) for index, item in enumerate(items)]
        return await while_connected(request, _batch(edge, parsed, call))

    return [
        Route(GENERATE_PATH, generate, methods=["POST"]),
        Route(BATCH_PATH, batch, methods=["POST"]),
    ]


def parse_generate(body: Mapping[str, Any], ignored: IgnoredFields) -> GenerationRequest:
    """The request in a body; camelCase and snake_case are both read."""
    given = read_fields(Place.GENERATE, body, ignored)
    prompt = given.require("prompt")
    if not isinstance(prompt, str):
        raise wrong_value("prompt", prompt, Kind.TEXT)
    return GenerationRequest(
        text=prompt, sampling=sampling_params(given), names=given.names, **request_options(given)
    )


def _tried(item: Any, index: int, ignored: IgnoredFields) -> GenerationRequest | MillraceError:
    where = f"requests[{index}]"
    try:
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where} must be an object", field=where)
        parsed = parse_generate(item, ignored)
        if parsed.is_streamed:
            raise InvalidRequest(f"{where}: a batch is not streamed", field="stream")
    except MillraceError as error:
        return error
    return parsed


async def _whole(edge: HttpEdge, parsed: GenerationRequest, call: Call) -> JSONResponse:
    answer = await edge.pipeline.open(parsed, call)
    whole = await read_whole(answer, parsed.sampling.num_choices)
    return JSONResponse(generate_reply(whole, call.elapsed_ns))


async def _batch(
    edge: HttpEdge, parsed: list[GenerationRequest | MillraceError], call: Call
) -> JSONResponse:
    results: list[Any] = [None] * len(parsed)
    latencies_ns: list[int] = []
    outcomes = run_batch(edge.pipeline, parsed, call, max_concurrency=edge.max_batch_concurrency)
    async for outcome in outcomes:
        results[outcome.index] = _result(outcome)
        if outcome.answer is not None:
            latencies_ns.append(outcome.latency_ns)
    return JSONResponse(
        {
            "results": results,
            "size": len(results),
            "totalLatencyMs": _ms(call.elapsed_ns),
            # Of what was answered: a refusal within microseconds says nothing of the rest.
            "meanLatencyMs": _ms(sum(latencies_ns) / max(1, len(latencies_ns))),
        }
    )


def _result(outcome: Outcome) -> dict[str, Any]:
    error = outcome.error or MillraceError("the request did not run")
    if outcome.answer is not None:
        try:
            return generate_reply(outcome.answer, outcome.latency_ns)
        except Aborted as aborted:
            error = aborted
    return {**error_body(error), "requestId": outcome.request_id}


def generate_reply(whole: WholeAnswer, latency_ns: int) -> dict[str, Any]:
    """The whole reply."""
    return {"text": whole.texts[0], **_summary(whole.started, whole.finished, latency_ns)}


async def generate_chunks(answer: Answer, call: Call) -> AsyncIterator[bytes]:
    """`{"text": ...}` per piece, then the reply's other fields, then [DONE]."""
    try:
        async for event in answer:
            if isinstance(event, Delta) and event.text:
                yield data_event({"text": event.text})
            elif isinstance(event, Finished):
                yield data_event(_summary(answer.started, event, call.elapsed_ns))
    except MillraceError as error:
        call.error = error
        yield data_event(error_body(error))
    yield DONE


def _summary(started: Started, finished: Finished, latency_ns: int) -> dict[str, Any]:
    usage = finished.usage
    return {
        "inputTokens": usage.num_prompt_tokens,
        "outputTokens": usage.num_output_tokens,
        "totalTokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "finishReason": finish_reason_text(finished.choices[0].finish_reason),
        "cached": finished.is_cached,
        "latencyMs": _ms(latency_ns),
        "model": started.model,
        "requestId": started.request_id,
        "seed": started.seed,
        "sampling": camel_cased(started.sampling),
    }


def _ms(elapsed_ns: float) -> float:
    return round(elapsed_ns / 1e6, 3)
