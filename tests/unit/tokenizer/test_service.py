"""The tokenizer service and its client over real gRPC."""

from __future__ import annotations

import asyncio
import platform
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from millrace.core.chat import ChatMessage
from millrace.core.detokenize import DecodeRow
from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import DeadlineExceeded, InvalidRequest, Unavailable, UnknownModel
from millrace.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.telemetry.metrics import TokenizerMetrics
from millrace.tokenizer import servicer as servicer_module
from millrace.tokenizer.servicer import MAX_INLINE_CHARS, MIN_FREED_CHARS, TokenizerServicer
from millrace.wire.tokenizer_client import TokenizerClient

SERVICE_NAME = "millrace.internal.v1.TokenizerService"


class Replica:
    """A tokenizer process, as far as the client can tell."""

    def __init__(self, servicer: tokenizer_pb2_grpc.TokenizerServiceServicer) -> None:
        self._servicer = servicer
        self.port = 0

    async def start(self) -> str:
        self._server = RpcServer("tokenizer", "127.0.0.1", self.port)
        add_to_server = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
        self._server.add(add_to_server, self._servicer, SERVICE_NAME)
        address = await self._server.start()
        self.port = int(address.rpartition(":")[2])
        return address

    async def stop(self) -> None:
        await self._server.stop(grace_s=0)


@pytest.fixture
def servicer(pairs: dict[str, Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        codecs = {"m": pairs["byte_level"].codec, "alias": pairs["byte_level"].codec}
        yield TokenizerServicer(codecs, executor, TokenizerMetrics(CollectorRegistry()))


@pytest.fixture
async def replica(servicer: TokenizerServicer) -> AsyncIterator[Replica]:
    replica = Replica(servicer)
    await replica.start()
    yield replica
    await replica.stop()


@pytest.fixture
async def client(replica: Replica) -> AsyncIterator[TokenizerClient]:
    async for made in _client(f"127.0.0.1:{replica.port}"):
        yield made


async def _client(*addresses: str, timeout_s: float = 5.0) -> AsyncIterator[TokenizerClient]:
    channels = [open_channel(address) for address in addresses]
    client = TokenizerClient(channels, timeout_s=timeout_s)
    yield client
    await client.close()
    for channel in channels:
        await channel.close()


async def ids_of(client: TokenizerClient, text: str, model: str = "m") -> list[int]:
    encoded = await client.encode_text(model, text)
    assert encoded.token_ids is not None
    assert encoded.num_tokens == len(encoded.token_ids)
    return encoded.token_ids


async def test_encode_and_decode_cross_the_wire(client: TokenizerClient) -> None:
    ids = await ids_of(client, "Hello 你好")
    (row,) = await client.decode("m", [DecodeRow((), 0, ids, True)])
    assert row.text == "Hello 你好"
    assert b"".join(await client.pieces("m", ids)).decode() == "Hello 你好"


async def test_chat_crosses_the_wire(client: TokenizerClient, pairs: dict[str, Any]) -> None:
    messages = [ChatMessage("user", "Hi", name="Ann"), ChatMessage("assistant", "")]
    expected = pairs["byte_level"].codec.encode_chat(messages)
    assert (await client.encode_chat("m", messages)).token_ids == expected


async def test_ids_of_a_prompt_with_too_many_tokens_stay_behind(client: TokenizerClient) -> None:
    text = "The quick brown fox"
    messages = [ChatMessage("user", text)]
    num_tokens = len(await ids_of(client, text))

    assert (await client.encode_text("m", text, max_ids=num_tokens)).token_ids is not None
    assert await client.encode_text("m", text, max_ids=num_tokens - 1) == EncodedPrompt(
        num_tokens, None
    )
    assert (await client.encode_text("m", text, max_ids=0)).num_tokens == num_tokens
    assert (await client.encode_chat("m", messages, max_ids=1)).token_ids is None


async def test_text_goes_on_behind_a_prompt(client: TokenizerClient, pairs: dict[str, Any]) -> None:
    emoji = await ids_of(client, "😀")
    prompt, rest = emoji[:1], emoji[1:]

    rows = await client.decode(
        "m",
        [
            DecodeRow((), 0, rest, True),
            DecodeRow(prompt, len(prompt), rest, is_after_prompt=True),
            DecodeRow(emoji, len(emoji), emoji, is_after_prompt=True),
        ],
    )

    assert set(rows[0].text) == {"\ufffd"}
    assert [row.text for row in rows[1:]] == ["😀", "😀"]


async def test_special_tokens_and_pieces_at_the_start_cross_the_wire(
    client: TokenizerClient, pairs: dict[str, Any]
) -> None:
    special = await client.special_ids("m")
    assert special == pairs["byte_level"].codec.special_ids
    assert set(special) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    ids = await ids_of(client, " fox")
    assert b"".join(await client.pieces("m", ids, is_at_start=True)) == b" fox"


async def test_memory_of_a_long_text_is_given_back(
    client: TokenizerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(servicer_module, "return_freed_memory", lambda: calls.append(1))
    await client.encode_text("m", "word " * (MAX_INLINE_CHARS // 4), max_ids=0)
    assert not calls
    await client.encode_text("m", "word " * (MIN_FREED_CHARS // 5 + 1), max_ids=0)
    assert calls


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others keep nothing back")
def test_freed_memory_leaves_the_process() -> None:
    program = (
        "from millrace.tokenizer.freed_memory import return_freed_memory as give_back\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "held = [bytes(60_000) + b'x' for _ in range(2000)]\n"
        "last = bytes(60_000) + b'y'\n"
        "held.clear(); before = rss(); give_back(); print(before - rss())"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(out.stdout) > 50_000_000


async def test_long_text_is_encoded_beside_the_loop(client: TokenizerClient) -> None:
    text = "word " * MAX_INLINE_CHARS
    ids = await ids_of(client, text, "alias")
    assert b"".join(await client.pieces("m", ids)).decode() == text


async def test_frames_keep_their_rows_apart(client: TokenizerClient) -> None:
    emoji = await ids_of(client, "😀")
    word = await ids_of(client, "fox")

    first = await client.decode(
        "m", [DecodeRow((), 0, emoji[:1]), DecodeRow((), 0, word), DecodeRow((), 0, ())]
    )
    second = await client.decode(
        "m", [DecodeRow(first[0].tail_ids, first[0].num_tail_shown, emoji[1:], True)]
    )

    assert [row.text for row in first] == ["", "fox", ""]
    assert first[0].tail_ids == tuple(emoji[:1])
    assert second[0].text == "😀"


async def test_answers_of_many_callers_do_not_mix(client: TokenizerClient) -> None:
    texts = [f"caller {number}" for number in range(50)]
    encoded = await asyncio.gather(*(ids_of(client, text) for text in texts))
    rows = await asyncio.gather(
        *(client.decode("m", [DecodeRow((), 0, ids, True)]) for ids in encoded)
    )
    assert [row[0].text for row in rows] == texts


async def test_errors_of_the_tokenizer_reach_the_caller(client: TokenizerClient) -> None:
    with pytest.raises(UnknownModel, match="does not serve 'other'"):
        await client.encode_text("other", "x")
    with pytest.raises(InvalidRequest) as caught:
        await client.encode_chat("m", [])
    assert caught.value.field == "messages"


async def test_a_bad_frame_fails_alone(client: TokenizerClient) -> None:
    ids = await ids_of(client, "fox")
    rows = [DecodeRow((), 0, ids, True)]
    results = await asyncio.gather(
        client.decode("other", rows),
        *(client.decode("m", rows) for _ in range(5)),
        return_exceptions=True,
    )
    assert isinstance(results[0], UnknownModel)
    assert [result[0].text for result in results[1:]] == ["fox"] * 5  # type: ignore[index]


async def test_columns_that_do_not_fit_are_refused(replica: Replica) -> None:
    channel = open_channel(f"127.0.0.1:{replica.port}")
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    call = stub.Decode()
    await call.write(tokenizer_pb2.DecodeRequest(model="m", num_new=[2], new_ids=[1]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Encode(tokenizer_pb2.EncodeRequest(model="m"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await channel.close()


async def test_tokenizer_is_described(replica: Replica) -> None:
    channel = open_channel(f"127.0.0.1:{replica.port}")
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    answer = await stub.GetTokenizer(tokenizer_pb2.GetTokenizerRequest(model="alias"))
    assert list(answer.models) == ["m", "alias"]
    assert answer.has_chat_template
    assert answer.vocab_size > 256
    await channel.close()


async def test_calls_go_on_at_the_other_replica(
    replica: Replica, servicer: TokenizerServicer
) -> None:
    other = Replica(servicer)
    addresses = [f"127.0.0.1:{replica.port}", await other.start()]
    async for client in _client(*addresses):
        ids = await ids_of(client, "fox")
        rows = [DecodeRow((), 0, ids, True)]
        for _ in range(4):
            await client.decode("m", rows)
        await other.stop()
        for _ in range(6):
            assert await ids_of(client, "fox") == ids
            assert (await client.decode("m", rows))[0].text == "fox"
        assert await client.is_ready()


async def test_decode_waits_for_a_restarted_tokenizer(
    replica: Replica, client: TokenizerClient
) -> None:
    ids = await ids_of(client, "fox")
    rows = [DecodeRow((), 0, ids, True)]
    await client.decode("m", rows)
    await replica.stop()

    decoding = asyncio.create_task(client.decode("m", rows))
    with pytest.raises(Unavailable):
        await client.encode_text("m", "fox")
    assert not await client.is_ready()
    await replica.start()

    assert (await decoding)[0].text == "fox"


async def test_absent_tokenizer_is_unavailable(replica: Replica) -> None:
    async for client in _client("127.0.0.1:1", timeout_s=1.0):
        with pytest.raises(Unavailable):
            await client.encode_text("m", "x")
        with pytest.raises(Unavailable):
            await client.decode("m", [])
        assert not await client.is_ready()


class _SilentServicer(TokenizerServicer):
    """Takes everything and never answers."""

    def __init__(self) -> None:
        pass

    async def Encode(self, request: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    async def Decode(self, requests: Any, context: Any) -> Any:
        async for _ in requests:
            await asyncio.Event().wait()
        yield


async def test_silent_replica_is_left_for_the_other_one(replica: Replica) -> None:
    silent = Replica(_SilentServicer())
    addresses = [await silent.start(), f"127.0.0.1:{replica.port}"]
    async for client in _client(*addresses, timeout_s=1.0):
        ids = await ids_of(client, "fox")
        (row,) = await client.decode("m", [DecodeRow((), 0, ids, True)])
        assert row.text == "fox"
    await silent.stop()


async def test_silent_tokenizer_ends_in_a_deadline() -> None:
    silent = Replica(_SilentServicer())
    async for client in _client(await silent.start(), timeout_s=0.3):
        with pytest.raises(DeadlineExceeded):
            await client.encode_text("m", "x")
        with pytest.raises(DeadlineExceeded):
            await client.decode("m", [DecodeRow((), 0, (1,))])
    await silent.stop()


async def test_caller_that_gives_up_does_not_shift_the_answers(client: TokenizerClient) -> None:
    texts = [f"row {number}" for number in range(20)]
    encoded = [await ids_of(client, text) for text in texts]
    tasks = [
        asyncio.create_task(client.decode("m", [DecodeRow((), 0, ids, True)])) for ids in encoded
    ]
    for number, task in enumerate(tasks):
        if number % 3 == 0:
            await asyncio.sleep(0)
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for text, result in zip(texts, results, strict=True):
        if not isinstance(result, BaseException):
            assert result[0].text == text
    assert sum(not isinstance(result, BaseException) for result in results) >= 13
