"""A prompt of 128k tokens goes through every hop, to a model that allows it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from random import Random

import grpc
import httpx
import pytest

from millrace.testing.stack import Stack, start_stack
from millrace.v1 import types_pb2
from tests.e2e.client import Client
from tests.e2e.tiny_model import VOCAB_SIZE, write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_TOKENS = 131_072
NUM_NEW = 8
FIRST_PLAIN_ID = 3


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("long")
    model = write_tiny_model(folder / "tiny", max_len=NUM_TOKENS + NUM_NEW, num_layers=1)
    settings = {"MILLRACE_WORKER_DTYPE": "float32"}
    flags = ("--model", str(model))
    with start_stack(folder / "home", folder / "models", *flags, settings=settings) as started:
        yield started


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    connected = Client(stack)
    yield connected
    await connected.close()


async def test_prompt_exactly_at_the_limit_of_128k_tokens_is_answered(client: Client) -> None:
    random = Random(1)
    token_ids = [random.randrange(FIRST_PLAIN_ID, VOCAB_SIZE) for _ in range(NUM_TOKENS)]
    whole = await client.ask(token_ids=token_ids, max_tokens=NUM_NEW, ignore_eos=True)
    assert whole.num_prompt_tokens == NUM_TOKENS
    assert len(whole.tokens) == NUM_NEW
    assert whole.finished is not None
    assert whole.finished.choices[0].finish_reason == types_pb2.FINISH_REASON_LENGTH

    again = await client.ask(token_ids=token_ids, max_tokens=NUM_NEW, ignore_eos=True)
    assert again.tokens == whole.tokens
    assert again.finished is not None
    assert again.finished.usage.num_cached_tokens > NUM_TOKENS // 2

    with pytest.raises(grpc.aio.AioRpcError, match=str(NUM_TOKENS + NUM_NEW)) as refused:
        await client.ask(token_ids=[*token_ids, 5], max_tokens=NUM_NEW, ignore_eos=True)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_body_over_the_limit_is_a_clear_413(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.http_url, timeout=60) as http:
        answer = await http.post("/v1/completions", json={"prompt": "a" * (9 << 20)})
    assert answer.status_code == 413
    assert str(8 << 20) in answer.json()["error"]["message"]
