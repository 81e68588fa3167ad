"""POST /v1/chat/completions, whole and streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from millrace.core.errors import InvalidRequest, MillraceError
from millrace.core.request_fields.field import Place
from millrace.core.request_fields.ignored import IgnoredFields
from millrace.gateway.answers import Answer, WholeAnswer, read_whole
from millrace.gateway.calls import Call
from millrace.gateway.events import ChoiceFinished, Delta, Finished, Started
from millrace.gateway.generation import GenerationRequest

from .body import read_json
from .edge import HttpEdge, call_of, telling_ignored, while_connected
from .errors import error_body
from .messages import parse_messages
from .parameters import request_options, sampling_params, with_header_key
from .reading import Given, read_fields
from .replies import (
    chat_logprobs,
    extension,
    fingerprint,
    finish_reason_text,
    usage_body,
)
from .sse import DONE, EventStream, compact_json, data_event

PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat request and how its reply is to look."""

    request: GenerationRequest
    has_logprobs: bool
    includes_usage: bool


def chat_routes(edge: HttpEdge) -> list[Route]:
    """The chat route."""

    async def chat(request: Request) -> Any:
        body = await read_json(request, edge.max_body_bytes)
        call = call_of(request)
        with telling_ignored(edge, call) as ignored:
            parsed = parse_chat(with_header_key(request, body), ignored)
        if not parsed.request.is_streamed:
            return await while_connected(request, _whole(edge, parsed, call))
        answer = await while_connected(
            request, edge.pipeline.open(parsed.request, call), is_streamed=True
        )
        return EventStream(
            chat_chunks(answer, parsed, call),
            answer.abandon,
            ping_interval_s=edge.ping_interval_s,
            write_timeout_s=edge.write_timeout_s,
        )

    return [Route(PATH, chat, methods=["POST"])]


async def _whole(edge: HttpEdge, parsed: ChatCall, call: Call) -> JSONResponse:
    answer = await edge.pipeline.open(parsed.request, call)
    whole = await read_whole(answer, parsed.request.sampling.num_choices)
    return JSONResponse(chat_reply(whole, parsed))


def parse_chat(body: dict[str, Any], ignored: IgnoredFields) -> ChatCall:
    """The request in a body. Raises `InvalidRequest` naming field and value."""
    given = read_fields(Place.CHAT, body, ignored)
    has_logprobs = given.get("logprobs", False)
    if not has_logprobs and given.values.pop("top_logprobs", None):
        raise InvalidRequest("top_logprobs needs logprobs: true", field="top_logprobs")
    if has_logprobs:
        given.values.setdefault("top_logprobs", 0)
    request = GenerationRequest(
        messages=parse_messages(given.require("messages"), ignored),
        sampling=sampling_params(given),
        names=given.names,
        **request_options(given),
    )
    return ChatCall(request, has_logprobs, includes_usage(given, ignored))


def includes_usage(given: Given, ignored: IgnoredFields) -> bool:
    """`stream_options.include_usage`, which needs `stream`."""
    if "stream_options" not in given.values:
        return False
    options = read_fields(
        Place.STREAM_OPTIONS, given.values["stream_options"], ignored, "stream_options."
    )
    is_asked: bool = options.get("include_usage", False)
    if is_asked and not given.get("stream", False):
        raise InvalidRequest("stream_options needs stream: true", field="stream_options")
    return is_asked


def chat_reply(whole: WholeAnswer, parsed: ChatCall) -> dict[str, Any]:
    """The whole reply."""
    started = whole.started
    return {
        "id": f"chatcmpl-{started.request_id}",
        "object": "chat.completion",
        "created": started.created_unix_s,
        "model": started.model,
        "system_fingerprint": fingerprint(started),
        "choices": [
            {
                "index": choice.choice,
                "message": {
                    "role": "assistant",
                    "content": whole.texts[choice.choice],
                    "refusal": None,
                },
                "logprobs": (
                    chat_logprobs(whole.logprobs[choice.choice]) if parsed.has_logprobs else None
                ),
                "finish_reason": finish_reason_text(choice.finish_reason),
            }
            for choice in whole.finished.choices
        ],
        "usage": usage_body(whole.finished.usage),
        "millrace": extension(started),
    }


async def chat_chunks(answer: Answer, parsed: ChatCall, call: Call) -> AsyncIterator[bytes]:
    """The events of a streamed reply; an error ends it with an error chunk."""
    writer = ChatChunks(answer.started, parsed)
    try:
        async for event in answer:
            if isinstance(event, Delta):
                chunk = writer.delta(event)
                if chunk:
                    yield chunk
            elif isinstance(event, Started):
                yield writer.roles()
            elif isinstance(event, ChoiceFinished):
                yield writer.end(event)
            elif parsed.includes_usage:
                yield writer.usage(event)
    except MillraceError as error:
        call.error = error
        yield data_event(error_body(error))
    yield DONE


class ChatChunks:
    """Writes chunks around a head that is made once; only the text is encoded per token."""

    def __init__(self, started: Started, parsed: ChatCall) -> None:
        self._started = started
        self._parsed = parsed
        head = compact_json(
            {
                "id": f"chatcmpl-{started.request_id}",
                "object": "chat.completion.chunk",
                "created": started.created_unix_s,
                "model": started.model,
                "system_fingerprint": fingerprint(started),
            }
        )
        self._head = f"data: {head[:-1]}"
        self._tail = ',"usage":null}\n\n' if parsed.includes_usage else "}\n\n"

    def roles(self) -> bytes:
        """The first chunk of every choice."""
        num_choices = self._parsed.request.sampling.num_choices
        extra = f',"millrace":{compact_json(extension(self._started))}'
        chunks = []
        for index in range(num_choices):
            delta = '{"role":"assistant","content":"","refusal":null}'
            chunks.append(self._choice(index, delta, extra=extra if index == 0 else ""))
        return b"".join(chunks)

    def delta(self, event: Delta) -> bytes:
        """New text; nothing where a character is still incomplete, unless there are logprobs."""
        if not event.text and not event.logprobs:
            return b""
        logprobs = "null"
        if self._parsed.has_logprobs:
            logprobs = compact_json(chat_logprobs(list(event.logprobs)))
        return self._choice(event.choice, f'{{"content":{compact_json(event.text)}}}', logprobs)

    def end(self, event: ChoiceFinished) -> bytes:
        """The last chunk of a choice."""
        reason = f'"{finish_reason_text(event.finish_reason)}"'
        return self._choice(event.choice, "{}", finish=reason)

    def usage(self, event: Finished) -> bytes:
        """The chunk without choices that carries the usage."""
        body = compact_json(usage_body(event.usage))
        return f'{self._head},"choices":[],"usage":{body}}}\n\n'.encode()

    def _choice(
        self, index: int, delta: str, logprobs: str = "null", finish: str = "null", extra: str = ""
    ) -> bytes:
        return (
            f'{self._head},"choices":[{{"index":{index},"delta":{delta},"logprobs":{logprobs},'
            f'"finish_reason":{finish}}}]{extra}{self._tail}'
        ).encode()
