"""Prompts and answers in spans, for those who have asked for it: by default no text gets there.

The attributes are those of the OpenTelemetry conventions for generative AI; tracing UIs show them
as input and output. Long texts are cut: a store of spans is not one of documents.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence

from opentelemetry.trace import Span

from millrace.core.cancellation import CancelReason
from millrace.telemetry.names import ATTR_INPUT_MESSAGES, ATTR_OUTPUT_MESSAGES
from millrace.telemetry.otlp import MAX_VALUE_CHARS

from .answers import Answer
from .events import Delta, Event, Finished, Started
from .generation import GenerationRequest

MAX_TEXT_CHARS = 2000
CUT = "..."

Turn = tuple[str, str]


class CapturedAnswer:
    """Another answer, whose text goes into the span when it is over."""

    def __init__(self, answer: Answer, request: GenerationRequest, span: Span) -> None:
        self._answer = answer
        self._span = span
        self._texts = [""] * request.sampling.num_choices
        turns = [(message.role, message.content) for message in request.messages or ()]
        if request.text is not None:
            turns = [("user", request.text)]
        span.set_attribute(ATTR_INPUT_MESSAGES, messages_json(turns))

    @property
    def started(self) -> Started:
        """See `Answer`."""
        return self._answer.started

    @started.setter
    def started(self, started: Started) -> None:
        self._answer.started = started

    @property
    def on_cut(self) -> Callable[[], None] | None:
        """See `Answer`."""
        return self._answer.on_cut

    @on_cut.setter
    def on_cut(self, action: Callable[[], None] | None) -> None:
        self._answer.on_cut = action

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The events."""
        async for event in self._answer:
            if isinstance(event, Delta):
                self._take(event)
            elif isinstance(event, Finished):
                self._write()
            yield event

    def abandon(self, reason: CancelReason = CancelReason.CLIENT) -> None:
        """See `Answer`."""
        self._write()
        self._answer.abandon(reason)

    def _take(self, delta: Delta) -> None:
        if len(self._texts[delta.choice]) <= MAX_TEXT_CHARS:
            self._texts[delta.choice] += delta.text

    def _write(self) -> None:
        if not self._span.is_recording():
            # Over before, and told then.
            return
        turns = [("assistant", text) for text in self._texts]
        self._span.set_attribute(ATTR_OUTPUT_MESSAGES, messages_json(turns))


def messages_json(turns: Sequence[Turn]) -> str:
    """The last turns that fit into an attribute, each cut to its bound."""
    kept: list[dict[str, object]] = []
    for role, text in reversed(turns):
        part = {"type": "text", "content": cut(text, MAX_TEXT_CHARS)}
        turn: dict[str, object] = {"role": role[:64], "parts": [part]}
        longer = [turn, *kept]
        if len(_json(longer)) > MAX_VALUE_CHARS:
            break
        kept = longer
    return _json(kept)


def cut(text: str, most: int) -> str:
    """The beginning of a text, with a mark if it goes on."""
    return text if len(text) <= most else text[: most - len(CUT)] + CUT


def _json(messages: Sequence[object]) -> str:
    return json.dumps(messages, ensure_ascii=False)
