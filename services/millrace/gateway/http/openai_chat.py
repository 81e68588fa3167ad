"""POST /v1/chat/completions, whole and streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from millrace.core.chat import ChatMessage
from millrace.core.errors import InvalidRequest, MillraceError
from millrace.gateway.answers import Answer, WholeAnswer, read_whole
from millrace.gateway.calls import Call
from millrace.gateway.events import ChoiceFinished, Delta, Finished, Started
from millrace.gateway.generation import MAX_MESSAGES, GenerationRequest

from .body import read_json
from .edge import HttpEdge, call_of, while_connected
from .errors import error_body, unsupported_parameter
from .fields import Fields, check_names
from .parameters import (
    IGNORED_FIELDS,
    OPTION_FIELDS,
    SAMPLING_FIELDS,
    UNSUPPORTED_EVERYWHERE,
    request_options,
    sampling_params,
    with_header_key,
)
from .replies import (
    chat_logprobs,
    extension,
    fingerprint,
    finish_reason_text,
    usage_body,
)
from .sse import DONE, EventStream, compact_json, data_event

PATH = "/v1/chat/completions"

_KNOWN = (
    {"model", "messages", "stream", "stream_options", "max_completion_tokens", "top_logprobs"}
    | {"tool_choice", "response_format", "modalities"}
    | SAMPLING_FIELDS
    | OPTION_FIELDS
    | IGNORED_FIELDS
)
_UNSUPPORTED: Mapping[str, str] = {
    **UNSUPPORTED_EVERYWHERE,
    "tools": "calling tools",
    "functions": "calling functions",
    "function_call": "calling functions",
    "audio": "audio output",
    "web_search_options": "web search",
    "chat_template": "a chat template in the request",
    "chat_template_kwargs": "chat template arguments",
    "continue_final_message": "continuing the last message",
    "documents": "documents",
}
_MESSAGE_UNSUPPORTED: Mapping[str, str] = {
    "tool_calls": "calling tools",
    "function_call": "calling functions",
    "audio": "audio",
}


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
        parsed = parse_chat(with_header_key(request, body))
        call = call_of(request)
        if not parsed.request.is_streamed:
            return await while_connected(request, _whole(edge, parsed, call))
        answer = await while_connected(request, edge.pipeline.open(parsed.request, call))
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


def parse_chat(body: dict[str, Any]) -> ChatCall:
    """The request in a body. Raises `InvalidRequest` naming field and value."""
    fields = Fields(body)
    check_names(fields, _KNOWN, _UNSUPPORTED)
    _check_semantics(fields)
    is_streamed = fields.flag("stream") or False
    has_logprobs = fields.flag("logprobs") or False
    top_logprobs = fields.integer("top_logprobs")
    if top_logprobs is not None and not has_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", field="top_logprobs")
    max_name, max_tokens = _max_tokens(fields)
    request = GenerationRequest(
        model=fields.text("model") or "",
        messages=_messages(fields),
        sampling=sampling_params(
            fields,
            max_tokens=max_tokens,
            top_logprobs=(top_logprobs or 0) if has_logprobs else None,
            names={"max_tokens": max_name},
        ),
        is_streamed=is_streamed,
        **request_options(fields),
    )
    return ChatCall(request, has_logprobs, includes_usage(fields, is_streamed))


def includes_usage(fields: Fields, is_streamed: bool) -> bool:
    """`stream_options.include_usage`, which needs `stream`."""
    options = fields.object("stream_options")
    if options is None:
        return False
    if not is_streamed:
        raise InvalidRequest("stream_options needs stream: true", field="stream_options")
    return options.flag("include_usage") or False


def _max_tokens(fields: Fields) -> tuple[str, int | None]:
    newer = fields.integer("max_completion_tokens")
    older = fields.integer("max_tokens")
    if newer is not None and older is not None and newer != older:
        raise InvalidRequest(
            f"max_completion_tokens is {newer} and max_tokens is {older}; give one of them",
            field="max_tokens",
        )
    return ("max_tokens", older) if newer is None else ("max_completion_tokens", newer)


def _check_semantics(fields: Fields) -> None:
    choice = fields.raw("tool_choice")
    if choice not in (None, "none", "auto"):
        raise unsupported_parameter("tool_choice", "calling tools")
    if fields.raw("modalities") not in (None, ["text"]):
        raise unsupported_parameter("modalities", "anything but text")
    wanted = fields.object("response_format")
    if wanted is not None and wanted.raw("type") != "text":
        raise unsupported_parameter("response_format", "a format other than text")


def _messages(fields: Fields) -> tuple[ChatMessage, ...]:
    messages = fields.items("messages")
    if messages is None:
        raise fields.missing("messages")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise InvalidRequest(
            f"messages has {len(messages)} entries; allowed are 1 to {MAX_MESSAGES}",
            field="messages",
        )
    return tuple(_message(index, message) for index, message in enumerate(messages))


def _message(index: int, message: Any) -> ChatMessage:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object", field=where)
    fields = Fields(message, f"{where}.")
    for name, what in _MESSAGE_UNSUPPORTED.items():
        if fields.raw(name):
            raise unsupported_parameter(f"{where}.{name}", what)
    role = fields.text("role")
    if role is None:
        raise fields.missing("role")
    content = fields.raw("content")
    if content is None:
        raise fields.missing("content")
    # The newer name of the same role; templates know the older one.
    role = "system" if role == "developer" else role
    return ChatMessage(role, _content(content, fields), fields.text("name"))


def _content(content: Any, fields: Fields) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise fields.refuse("content", "a string or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(kind, str) and kind not in ("text", "input_text"):
            raise unsupported_parameter(fields.path("content"), f"a part of type {kind[:40]!r}")
        else:
            raise fields.refuse("content", "a string or a list of text parts")
    return "".join(texts)


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
