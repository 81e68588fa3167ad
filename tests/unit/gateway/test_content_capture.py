"""Text gets into spans only on request, and then not without bounds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from millrace.gateway.content_capture import MAX_TEXT_CHARS, messages_json
from millrace.gateway.pipeline import PipelineLimits
from millrace.telemetry.names import ATTR_INPUT_MESSAGES, ATTR_OUTPUT_MESSAGES, ATTR_REQUEST_ID
from millrace.telemetry.otlp import MAX_VALUE_CHARS
from millrace.testing.span_recorder import SpanRecorder

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hush"}]}


async def _attributes(gateway: Harness, recorder: SpanRecorder, **fields: Any) -> Any:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={**BODY, **fields})
    assert reply.status_code == 200
    request_id = reply.headers["x-request-id"]
    spans = [s for s in recorder.spans() if s.attributes.get(ATTR_REQUEST_ID) == request_id]
    assert len(spans) == 1
    return spans[0].attributes


async def test_nothing_is_captured_by_default(gateway: Harness, recorder: SpanRecorder) -> None:
    await _attributes(gateway, recorder)

    told = str(recorder.spans())
    assert "hush" not in told and "be kind" not in told and "Hello" not in told


class TestOnRequest:
    @pytest.fixture
    def limits(self) -> PipelineLimits:
        return PipelineLimits(trace_content=True)

    @pytest.mark.parametrize("is_streamed", [True, False])
    async def test_prompt_and_answer_are_there(
        self, gateway: Harness, recorder: SpanRecorder, is_streamed: bool
    ) -> None:
        attributes = await _attributes(gateway, recorder, stream=is_streamed)

        assert json.loads(attributes[ATTR_INPUT_MESSAGES]) == [
            {"role": "system", "parts": [{"type": "text", "content": "be kind"}]},
            {"role": "user", "parts": [{"type": "text", "content": "hush"}]},
        ]
        (said,) = json.loads(attributes[ATTR_OUTPUT_MESSAGES])
        assert said["role"] == "assistant"
        assert said["parts"][0]["content"] == "Hello, world!"

    async def test_every_choice_has_its_own(self, gateway: Harness, recorder: SpanRecorder) -> None:
        attributes = await _attributes(gateway, recorder, n=3)

        assert len(json.loads(attributes[ATTR_OUTPUT_MESSAGES])) == 3


@pytest.mark.parametrize("text", ["x" * 100_000, '"' * 100_000, "河" * 100_000, "\x00" * 9_000])
def test_long_texts_are_cut_and_stay_json(text: str) -> None:
    written = messages_json([("user", text), ("assistant", "short"), ("user", text)])

    assert len(written) <= MAX_VALUE_CHARS
    for message in json.loads(written):
        assert len(message["parts"][0]["content"]) <= MAX_TEXT_CHARS


def test_last_turns_are_kept_where_not_all_fit() -> None:
    written = json.loads(messages_json([("user", str(n) * 1000) for n in range(9)]))

    assert [message["parts"][0]["content"][0] for message in written] == ["6", "7", "8"]
