"""Clients that leave, and aborts that come, while something else is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import pytest
from starlette.types import Message

from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.core.sampling import SamplingParams
from millrace.core.tokens import FinishReason
from millrace.gateway.calls import begin_call
from millrace.gateway.events import ChoiceFinished, Finished
from millrace.gateway.generation import GenerationRequest
from millrace.gateway.http.app import create_app

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import FakeTokenizer, Harness


class _GatedDecode:
    """In place of a tokenizer's `decode`: asks it, and keeps the answer until `gate` is set."""

    def __init__(self, tokenizer: FakeTokenizer) -> None:
        self._decode = tokenizer.decode
        self.gate = asyncio.Event()
        self.num_waiting = 0

    async def __call__(self, model: str, rows: Sequence[DecodeRow]) -> list[DecodedRow]:
        decoded = await self._decode(model, rows)
        self.num_waiting += 1
        await self.gate.wait()
        self.num_waiting -= 1
        return decoded


@pytest.mark.parametrize("finish", [FinishReason.NONE, FinishReason.STOP])
async def test_abort_while_tokens_are_decoded_stays_an_abort(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch, finish: FinishReason
) -> None:
    gateway.silence()
    decode = _GatedDecode(gateway.tokenizer)
    monkeypatch.setattr(gateway.tokenizer, "decode", decode)
    answer = await gateway.open()
    gateway.send([300], 0, finish)
    await gateway.until(lambda: decode.num_waiting == 1)
    assert await gateway.pipeline.abort(gateway.queued.request_id)
    decode.gate.set()
    await gateway.until(lambda: decode.num_waiting == 0)
    await asyncio.sleep(0)

    events = await gateway.read(answer)

    assert cast(Finished, events[-1]).choices == (ChoiceFinished(0, FinishReason.ABORT, None, 0),)


async def test_abort_of_a_request_that_is_still_encoded_ends_it(gateway: Harness) -> None:
    gateway.silence()
    gateway.tokenizer.gate = asyncio.Event()
    call = begin_call("chat", {})
    request = GenerationRequest(text="hi", sampling=SamplingParams())
    opening = asyncio.create_task(gateway.pipeline.open(request, call))
    await gateway.until(lambda: gateway.pipeline.num_in_flight == 1)

    assert await gateway.pipeline.abort(call.request_id)
    gateway.tokenizer.gate.set()
    events = await gateway.read(await opening)

    assert cast(Finished, events[-1]).choices == (ChoiceFinished(0, FinishReason.ABORT, None, 0),)
    assert gateway.bus.aborted == []
    await gateway.until(lambda: gateway.stream.told("abort") != [])
    assert gateway.pipeline.num_in_flight == 0


async def test_client_that_leaves_in_its_upload_is_no_defect(
    gateway: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Message] = [
        {"type": "http.request", "body": b'{"prompt":', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Message:
        return received.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/generate",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }
    await create_app(gateway.edge)(scope, receive, send)

    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert sent[0]["status"] != 500
    assert gateway.pipeline.num_in_flight == 0
