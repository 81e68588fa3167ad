"""POST /v1/completions, whole and streamed, of one prompt or of several."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from millrace.core.cancellation import CancelReason
from millrace.core.errors import InvalidRequest, MillraceError
from millrace.core.request_fields.field import FieldNames, Place
from millrace.core.request_fields.ignored import IgnoredFields
from millrace.core.request_fields.our_sampling import COMPLETIONS_MAX_TOKENS
from millrace.gateway.answers import Answer, WholeAnswer
from millrace.gateway.batch import run_batch, run_one
from millrace.gateway.calls import Call
from millrace.gateway.events import ChoiceFinished, Delta, Event, Finished, Started, Usage
from millrace.gateway.generation import GenerationRequest

from .body import read_json
from .completion_logprobs import CompletionLogprobs, completion_logprobs
from .edge import HttpEdge, call_of, telling_ignored, while_connected
from .errors import error_body
from .openai_chat import includes_usage
from .parameters import request_options, sampling_params, with_header_key
from .prompts import read_prompts
from .reading import read_fields
from .replies import extension, fingerprint, finish_reason_text, usage_body
from .sse import DONE, EventStream, compact_json, data_event

PATH = "/v1/completions"
# Events of several prompts that wait for one client, beside what each request buffers itself.
MERGE_BUFFER = 64


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """One request per prompt, and how the reply is to look."""

    requests: list[GenerationRequest]
    num_choices: int
    is_streamed: bool
    has_logprobs: bool
    includes_usage: bool


def completion_routes(edge: HttpEdge) -> list[Route]:
    """The completion route."""

    async def complete(request: Request) -> Any:
        body = await read_json(request, edge.max_body_bytes)
        call = call_of(request)
        with telling_ignored(edge, call) as ignored:
            parsed = parse_completion(with_header_key(request, body), edge.max_batch_size, ignored)
        if not parsed.is_streamed:
            return await while_connected(request, _whole(edge, parsed, call))
        opened = ExitStack()
        opening = _open_all(edge, parsed, call, opened)
        answers = await while_connected(request, opening, is_streamed=True)

        def abandon(reason: CancelReason) -> None:
            opened.close()
            for answer, part in answers:
                answer.abandon(reason)
                part.end()

        return EventStream(
            completion_chunks([answer for answer, _ in answers], parsed, call),
            abandon,
            ping_interval_s=edge.ping_interval_s,
            write_timeout_s=edge.write_timeout_s,
        )

    return [Route(PATH, complete, methods=["POST"])]


def parse_completion(
    body: dict[str, Any], max_prompts: int, ignored: IgnoredFields
) -> CompletionCall:
    """The requests in a body. Raises `InvalidRequest` naming field and value."""
    given = read_fields(Place.COMPLETIONS, body, ignored)
    sampling, options = sampling_params(given), request_options(given)
    prompts = read_prompts(given.require("prompt"), max_prompts)
    if len(prompts) > 1 and options["idempotency_key"] is not None:
        raise InvalidRequest(
            f"idempotency_key stands for one prompt; prompt has {len(prompts)}",
            field="idempotency_key",
        )
    requests = [
        GenerationRequest(
            sampling=sampling,
            default_max_tokens=COMPLETIONS_MAX_TOKENS,
            names=FieldNames(given.names, prompt=name),
            **prompt,
            **options,
        )
        for name, prompt in prompts.items()
    ]
    return CompletionCall(
        requests,
        sampling.num_choices,
        options["is_streamed"],
        sampling.top_logprobs is not None,
        includes_usage(given, ignored),
    )


def _parts(parsed: CompletionCall, call: Call) -> list[Call]:
    """The call itself for a single prompt, else one part per prompt."""
    return [call] if len(parsed.requests) == 1 else [call.part() for _ in parsed.requests]


async def _whole(edge: HttpEdge, parsed: CompletionCall, call: Call) -> JSONResponse:
    answers: list[WholeAnswer | None] = [None] * len(parsed.requests)
    if len(parsed.requests) == 1:
        outcome = await run_one(edge.pipeline, parsed.requests[0], call)
        if outcome.error is not None:
            raise outcome.error
        answers[0] = outcome.answer
    else:
        outcomes = run_batch(
            edge.pipeline, parsed.requests, call, max_concurrency=edge.max_batch_concurrency
        )
        async with aclosing(outcomes):
            async for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                answers[outcome.index] = outcome.answer
    whole = [answer for answer in answers if answer is not None]
    return JSONResponse(completion_reply(whole, parsed, call))


async def _open_all(
    edge: HttpEdge, parsed: CompletionCall, call: Call, held: ExitStack
) -> list[tuple[Answer, Call]]:
    """Opens every prompt; if one is refused the others are ended. `held` is the caller's to close
    when the answers are over."""
    opened: list[tuple[Answer, Call]] = []
    if len(parsed.requests) > 1:
        held.enter_context(edge.pipeline.batch(call))
    try:
        for request, part in zip(parsed.requests, _parts(parsed, call), strict=True):
            opened.append((await edge.pipeline.open(request, part), part))
    except BaseException:
        held.close()
        for answer, part in opened:
            answer.abandon()
            part.end()
        raise
    return opened


def completion_reply(
    answers: Sequence[WholeAnswer], parsed: CompletionCall, call: Call
) -> dict[str, Any]:
    """The whole reply; choices of all prompts in order."""
    started = answers[0].started
    choices = []
    for number, whole in enumerate(answers):
        for choice in whole.finished.choices:
            text, logprobs = whole.texts[choice.choice], whole.logprobs[choice.choice]
            choices.append(
                {
                    "index": number * parsed.num_choices + choice.choice,
                    "text": text,
                    "logprobs": (
                        completion_logprobs(text, logprobs) if parsed.has_logprobs else None
                    ),
                    "finish_reason": finish_reason_text(choice.finish_reason),
                }
            )
    return {
        "id": f"cmpl-{call.request_id}",
        "object": "text_completion",
        "created": started.created_unix_s,
        "model": started.model,
        "system_fingerprint": fingerprint(started),
        "choices": choices,
        "usage": usage_body(total_usage([whole.finished.usage for whole in answers])),
        "millrace": extension(started),
    }


def total_usage(usages: Sequence[Usage]) -> Usage:
    """Sums over several requests."""
    return Usage(
        sum(usage.num_prompt_tokens for usage in usages),
        sum(usage.num_output_tokens for usage in usages),
        sum(usage.num_cached_tokens for usage in usages),
    )


async def completion_chunks(
    answers: Sequence[Answer], parsed: CompletionCall, call: Call
) -> AsyncIterator[bytes]:
    """The events of a streamed reply; an error ends it with an error chunk."""
    writer = CompletionChunks(answers[0].started, parsed, call.request_id)
    usages: list[Usage] = []
    try:
        async with aclosing(_merged(answers)) as events:
            async for number, event in events:
                if isinstance(event, Finished):
                    usages.append(event.usage)
                elif chunk := writer.chunk(number, event):
                    yield chunk
        if parsed.includes_usage:
            yield writer.usage(total_usage(usages))
    except MillraceError as error:
        call.error = error
        yield data_event(error_body(error))
    yield DONE


async def _merged(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of several answers as they come, with the number of their prompt."""
    if len(answers) == 1:
        async for event in answers[0]:
            yield 0, event
        return
    merged: asyncio.Queue[tuple[int, Event | MillraceError]] = asyncio.Queue(MERGE_BUFFER)

    async def pump(number: int, answer: Answer) -> None:
        try:
            async for event in answer:
                await merged.put((number, event))
        except MillraceError as error:
            await merged.put((number, error))

    pumps = [asyncio.create_task(pump(*each)) for each in enumerate(answers)]
    try:
        num_open = len(answers)
        while num_open:
            number, item = await merged.get()
            if isinstance(item, MillraceError):
                raise item
            num_open -= isinstance(item, Finished)
            yield number, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


class CompletionChunks:
    """Writes chunks around a head that is made once; only the text is encoded per token."""

    def __init__(self, started: Started, parsed: CompletionCall, request_id: str) -> None:
        self._parsed = parsed
        head = compact_json(
            {
                "id": f"cmpl-{request_id}",
                "object": "text_completion",
                "created": started.created_unix_s,
                "model": started.model,
                "system_fingerprint": fingerprint(started),
            }
        )
        self._head = f"data: {head[:-1]}"
        self._tail = ',"usage":null}\n\n' if parsed.includes_usage else "}\n\n"
        self._extra = f',"millrace":{compact_json(extension(started))}'
        self._logprobs: dict[int, CompletionLogprobs] = defaultdict(CompletionLogprobs)

    def chunk(self, number: int, event: Event) -> bytes:
        """The chunk of an event of prompt `number`; empty where there is nothing to send."""
        if not isinstance(event, (Delta, ChoiceFinished)):
            return b""
        index = number * self._parsed.num_choices + event.choice
        if isinstance(event, ChoiceFinished):
            reason = finish_reason_text(event.finish_reason)
            return self._choice(index, "", self._columns(index, is_final=True), f'"{reason}"')
        columns = self._columns(index, event)
        return self._choice(index, event.text, columns) if event.text or columns else b""

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices that carries the usage."""
        body = compact_json(usage_body(usage))
        return f'{self._head},"choices":[],"usage":{body}}}\n\n'.encode()

    def _columns(
        self, index: int, event: Delta | None = None, *, is_final: bool = False
    ) -> dict[str, Any] | None:
        if not self._parsed.has_logprobs:
            return None
        text, positions = ("", ()) if event is None else (event.text, event.logprobs)
        return self._logprobs[index].feed(text, positions, is_final=is_final)

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str = "null"
    ) -> bytes:
        extra, self._extra = self._extra, ""
        shown = "null" if logprobs is None else compact_json(logprobs)
        return (
            f'{self._head},"choices":[{{"index":{index},"text":{compact_json(text)},'
            f'"logprobs":{shown},"finish_reason":{finish}}}]{extra}{self._tail}'
        ).encode()
