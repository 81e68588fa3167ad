"""`generate` and `chat` against a gateway that answers from a script."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.client import InferenceClient, SamplingOptions
from millrace.cli.last_request import last_request
from millrace.cli.sampling_flags import add_sampling_flags, sampling_of
from millrace.cli.stack.run_file import new_stack_record
from millrace.config.home import Home
from millrace.core.errors import InvalidRequest, Unavailable
from tests.unit.cli.fake_gateway import (
    TRACE_ID,
    FakeGateway,
    run_millrace,
    start_millrace,
    started_gateway,
)


@pytest.fixture
async def gateway() -> AsyncIterator[tuple[FakeGateway, str]]:
    async with started_gateway() as started:
        yield started


async def test_an_answer_is_streamed_and_measured(gateway: tuple[FakeGateway, str]) -> None:
    fake, address = gateway
    client = InferenceClient(address)
    pieces: list[str] = []
    sampling = SamplingOptions(max_tokens=5, temperature=0.0, stop=(".",))

    answer = await client.generate("once", "fake", sampling, pieces.append)
    await client.close()

    assert pieces == ["and so ", "on"]
    assert (answer.text, answer.finish_reason, answer.num_output_tokens) == ("and so on", "stop", 2)
    assert answer.total_s >= answer.ttft_s > 0
    sent = fake.prompts[0].options.sampling
    assert (sent.max_tokens, sent.temperature, list(sent.stop)) == (5, 0.0, ["."])
    assert not sent.HasField("top_p")


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--temperature", "0.5"], "temperature", 0.5),
        (["--top-k", "-1"], "top_k", 0),
        (["--seed", "-1"], "seed", 2**64 - 1),
        (["--repetition-penalty", "1.5"], "repetition_penalty", 1.5),
        (["--stop", "a", "--stop", "b"], "stop", ["a", "b"]),
        (["--ignore-eos"], "ignore_eos", True),
    ],
)
def test_every_flag_reaches_the_request(flags: list[str], field: str, value: object) -> None:
    sent = sampling_of(_parsed(flags)).to_proto()

    found = getattr(sent, field)
    assert (list(found) if field == "stop" else found) == value
    assert len(sent.ListFields()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temperature", "9"], "--temperature is 9; allowed is 0 to 2"),
        (["--seed", str(2**64)], "--seed is 18446744073709551616"),
        (["--top-k", "-2"], "--top-k is -2"),
        (["--max-tokens", "2", "--min-tokens", "3"], "--min-tokens 3 is over --max-tokens 2"),
    ],
)
def test_a_wrong_flag_is_named(flags: list[str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        sampling_of(_parsed(flags)).to_proto()


def _parsed(flags: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_sampling_flags(parser)
    return parser.parse_args(flags)


async def test_an_error_of_the_gateway_keeps_its_class(gateway: tuple[FakeGateway, str]) -> None:
    client = InferenceClient(gateway[1])

    with pytest.raises(InvalidRequest, match="messages is bad") as caught:
        await client.chat([("user", "bad")], "", SamplingOptions(), print)
    await client.close()

    assert caught.value.field == "messages"


@pytest.mark.parametrize("is_ours", [True, False])
async def test_request_on_the_stack_of_this_home_is_noted_for_trace(
    gateway: tuple[FakeGateway, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_ours: bool,
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    address = gateway[1] if is_ours else "elsewhere:1"
    record = new_stack_record("tiny", {"grpc": address})
    monkeypatch.setattr("millrace.cli.client.running_stack", lambda home: record)
    client = InferenceClient(gateway[1])

    answer = await client.chat([("user", "hi")], "", SamplingOptions(), lambda text: None)
    await client.close()

    noted = last_request(Home(tmp_path))
    assert (noted.request_id if noted else None) == (answer.request_id if is_ours else None)


async def test_nobody_at_the_address_says_how_to_start_a_stack() -> None:
    client = InferenceClient("127.0.0.1:1")

    with pytest.raises(Unavailable, match="start a stack with `.*millrace.* up`"):
        await client.generate("x", "", SamplingOptions(), print)
    await client.close()


async def test_one_message_is_answered_with_its_trace(gateway: tuple[FakeGateway, str]) -> None:
    status, out, err = await run_millrace(
        "chat", "hello", "--stats", "--system", "be brief", "--address", gateway[1]
    )

    assert (status, err) == (0, "")
    assert out.startswith("2 turns\n")
    assert "2 tokens, first after" in out
    assert f"millrace trace {TRACE_ID}" in out
    assert gateway[0].chats == [["system: be brief", "user: hello"]]


async def test_piped_lines_are_a_conversation(gateway: tuple[FakeGateway, str]) -> None:
    lines = "one\ntwo\n/reset\nthree\n/exit\nfour\n"

    status, out, err = await run_millrace("chat", "--lines", "--address", gateway[1], stdin=lines)

    assert (status, err) == (0, "")
    assert out == "1 turns\n3 turns\nforgotten\n1 turns\n"
    assert gateway[0].chats[1] == ["user: one", "assistant: 1 turns", "user: two"]


async def test_a_refused_turn_is_told_and_forgotten(gateway: tuple[FakeGateway, str]) -> None:
    status, out, err = await run_millrace(
        "chat", "--lines", "--address", gateway[1], stdin="bad\ngood\n"
    )

    assert status == 1
    assert "millrace: messages is bad" in err
    assert gateway[0].chats[1] == ["user: good"]


async def test_ctrl_c_ends_the_answer_and_not_the_chat(gateway: tuple[FakeGateway, str]) -> None:
    fake, address = gateway
    process = await start_millrace("chat", "--lines", "--address", address)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hang\n")
    assert await asyncio.wait_for(process.stdout.readexactly(2), 20) == b"1 "

    process.send_signal(signal.SIGINT)
    assert b"[stopped]" in await asyncio.wait_for(process.stdout.readline(), 20)
    process.stdin.write(b"again\n")
    answered = await asyncio.wait_for(process.stdout.readline(), 20)
    process.stdin.close()
    await asyncio.wait_for(process.wait(), 20)

    assert answered == b"1 turns\n"
    assert process.returncode == 0
    assert fake.num_cancelled == 1


async def test_generate_reads_stdin_and_answers_json(gateway: tuple[FakeGateway, str]) -> None:
    status, out, _ = await run_millrace(
        "generate", "-", "--json", "--address", gateway[1], stdin="once upon"
    )

    assert status == 0
    answer = json.loads(out)
    assert (answer["text"], answer["finish_reason"], answer["seed"]) == ("and so on", "stop", 7)
    assert gateway[0].prompts[0].text == "once upon"


async def test_probe_asks_the_health_service(gateway: tuple[FakeGateway, str]) -> None:
    status, out, _ = await run_millrace("probe", f"grpc://{gateway[1]}")
    assert (status, out) == (0, "healthy\n")

    status, _, err = await run_millrace("probe", "grpc://127.0.0.1:1")
    assert status == 1
    assert err.startswith("millrace: grpc://127.0.0.1:1 does not answer")


async def test_a_reader_that_goes_away_is_no_traceback(gateway: tuple[FakeGateway, str]) -> None:
    process = await start_millrace("generate", "once", "--address", gateway[1])
    assert process.stdout is not None
    assert process.stderr is not None
    transport: Any = process._transport  # type: ignore[attr-defined]
    transport.get_pipe_transport(1).close()

    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(process.wait(), 20)
    assert b"Traceback" not in await process.stderr.read()


def test_no_speed_is_made_up_for_a_single_token() -> None:
    from millrace.cli.client import Answer

    assert Answer(num_output_tokens=1, text="x", ttft_s=0.1, total_s=0.1).tokens_per_s == 0.0
    assert Answer(num_output_tokens=11, text="x", ttft_s=1.0, total_s=2.0).tokens_per_s == 10.0
