"""What is said in a chat: pipes, terminals, messages of several lines and commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.cli.chat_commands import COMMANDS, run_command
from millrace.cli.chat_input import QUOTES, read_entry
from millrace.cli.client import InferenceClient, SamplingOptions
from millrace.cli.console import Console
from millrace.cli.conversation import Conversation
from millrace.cli.sampling_flags import sampling_names
from millrace.cli.stack.first_answer import FirstAnswer
from millrace.cli.stack.stack_view import StackView
from millrace.cli.streams import MAX_INPUT_BYTES
from millrace.cli.up_config import UpConfig
from millrace.core.errors import InvalidRequest
from tests.unit.cli.fake_gateway import (
    FakeGateway,
    command,
    run_millrace,
    start_millrace,
    started_gateway,
)

TIMEOUT_S = 30
TAKE_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"


@pytest.fixture
async def gateway() -> AsyncIterator[tuple[FakeGateway, str]]:
    async with started_gateway() as started:
        yield started


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["Summarize"], "one\ntwo\n", "Summarize\n\none\ntwo"),
        (["Summarize"], "", "Summarize"),
        (["Summarize"], " \n\n", "Summarize"),
        ([], "one\n/reset\n", "one\n/reset"),
        ([], "µ é 中 😀\r\nend", "µ é 中 😀\nend"),
    ],
)
async def test_a_pipe_comes_behind_the_message_or_is_the_message(
    gateway: tuple[FakeGateway, str], arguments: list[str], stdin: str, said: str
) -> None:
    status, out, err = await run_millrace("chat", *arguments, "--address", gateway[1], stdin=stdin)

    assert (status, out, err) == (0, "1 turns\n", ""), err
    assert gateway[0].chats == [[f"user: {said}"]]


async def test_a_pipe_that_was_left_open_is_told(gateway: tuple[FakeGateway, str]) -> None:
    process = await start_millrace("chat", "Summarize", "--address", gateway[1])
    assert process.stderr is not None
    told = await asyncio.wait_for(process.stderr.readline(), TIMEOUT_S)
    out, _ = await asyncio.wait_for(process.communicate(b"late"), TIMEOUT_S)

    assert told.startswith(b"reading standard input")
    assert (process.returncode, out) == (0, b"1 turns\n")
    assert gateway[0].chats == [["user: Summarize\n\nlate"]]


@pytest.mark.parametrize(
    ("arguments", "stdin", "error"),
    [
        ([], b"", "the message is empty"),
        ([" "], b"\n", "the message is empty"),
        (["Summarize"], b"ab\xff", "standard input is not UTF-8: byte 0xff at position 2"),
        (["x"], b"y" * (MAX_INPUT_BYTES + 1), f"standard input is longer than {MAX_INPUT_BYTES}"),
        (["x", "--lines"], b"y", "--lines reads messages from standard input"),
        (["--lines"], b"z" * (MAX_INPUT_BYTES + 1), "a line of standard input is longer than"),
        (["--lines"], b'"""never\nended', "the input ended within a message"),
        (["--lines"], b"never ended\\\n", "the input ended within a message"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_cannot_be_a_message_is_one_line(
    gateway: tuple[FakeGateway, str], arguments: list[str], stdin: bytes, error: str
) -> None:
    process = await start_millrace("chat", *arguments, "--address", gateway[1])
    out, err = await asyncio.wait_for(process.communicate(stdin), TIMEOUT_S)

    assert (process.returncode, out) == (1, b"")
    assert err.decode().startswith(f"millrace: {error}") and err.count(b"\n") == 1
    assert gateway[0].chats == []


async def test_settings_made_in_a_chat_reach_the_next_request(
    gateway: tuple[FakeGateway, str], tmp_path: Path
) -> None:
    saved = tmp_path / "chat.json"
    lines = (
        '/system be brief\n/set temperature 0.5\n/set stop "\\n"\n/set seed 7\none\n'
        f"/set seed\n/system\ntwo\n/save {saved}\n/save {saved}\n/savee\n/bye\nthree\n"
    )

    status, out, err = await run_millrace("chat", "--lines", "--address", gateway[1], stdin=lines)

    assert status == 1, "two commands failed"
    assert gateway[0].chats == [
        ["system: be brief", "user: one"],
        ["user: one", "assistant: 2 turns", "user: two"],
    ]
    first, second = gateway[0].sampling
    assert (first.temperature, list(first.stop), first.seed) == (0.5, ["\n"], 7)
    assert second.temperature == 0.5 and not second.HasField("seed")
    assert "temperature: 0.5\n" in out and "seed: drawn, and told in the reply (not set)\n" in out
    assert err.splitlines() == [
        f"millrace: {saved} is there already; choose another name",
        "millrace: /savee is not a command; did you mean /save? /help lists them, and a message "
        'that begins with / goes between """',
    ]
    assert json.loads(saved.read_text(encoding="utf-8")) == {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "2 turns"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "3 turns"},
        ],
        "temperature": 0.5,
        "stop": ["\n"],
    }


async def test_a_terminal_takes_lines_of_several_kinds(gateway: tuple[FakeGateway, str]) -> None:
    typed = [
        *("one\n", '"""two\n', "/reset\n", 'three"""\n', "four \\\n", "five\n", "/reset\n"),
        *("abandoned\\\n", "\x03", '"""given up\n', "\x03", "six\n", "\x04"),
    ]

    status, shown = await on_terminal("chat", "--address", gateway[1], typed=typed)

    assert status == 0
    assert [chat[-1] for chat in gateway[0].chats] == [
        "user: one",
        "user: two\n/reset\nthree",
        "user: four \nfive",
        "user: six",
    ]
    assert len(gateway[0].chats[-1]) == 1, "forgotten"
    assert "/help lists the commands" in shown


async def on_terminal(*arguments: str, typed: list[str]) -> tuple[int, str]:
    """Types each piece when it is asked for one; the status, and what was shown."""
    own, its = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *command(*arguments, before=TAKE_TERMINAL),
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "OTEL_SDK_DISABLED": "true", "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(its)
    shown, asked_from = "", 0
    try:
        for piece in typed:
            while not re.search(r"(?:^|[\r\n])[>.] $", shown[asked_from:]):
                shown += await _read(own)
            asked_from = len(shown)
            os.write(own, piece.encode())
        with contextlib.suppress(OSError):
            while data := await _read(own):
                shown += data
        return await asyncio.wait_for(process.wait(), TIMEOUT_S), shown
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(own)


async def _read(terminal: int) -> str:
    loop = asyncio.get_running_loop()
    data = await asyncio.wait_for(loop.run_in_executor(None, os.read, terminal, 4096), TIMEOUT_S)
    return data.decode()


@pytest.mark.parametrize("stdin", [None, "once\n", "/help\nonce\ntwice\n"])
async def test_a_model_that_cannot_chat_is_told_with_what_to_type(
    gateway: tuple[FakeGateway, str], stdin: str | None
) -> None:
    gateway[0].lacks_template = True
    how = ["once"] if stdin is None else ["--lines"]

    status, _, err = await run_millrace("chat", *how, "--address", gateway[1], stdin=stdin or "")

    assert status == 1
    assert err.startswith("millrace: the model has no chat template; send a plain prompt: ")
    assert err.endswith(" generate TEXT\n") and err.count("\n") == 1


@pytest.mark.parametrize("lacks_template", [True, False])
async def test_the_first_answer_of_a_base_model_continues_a_text(
    gateway: tuple[FakeGateway, str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lacks_template: bool,
) -> None:
    # It runs between fork and exec, which gRPC here does not survive; the supervisor has none.
    monkeypatch.setattr("millrace.cli.stack.first_answer.death_with_parent", lambda: None)
    gateway[0].lacks_template = lacks_template
    ready = HTTPServer(("127.0.0.1", 0), _Ready)
    thread = threading.Thread(target=ready.serve_forever)
    thread.start()
    console = Console(environ={})
    view = StackView(console, ["gateway"], quiet=frozenset())
    endpoints = {"http": f"http://127.0.0.1:{ready.server_port}", "grpc": gateway[1]}
    try:
        await FirstAnswer(console, view, endpoints, UpConfig()).show(0.0)
    finally:
        ready.shutdown()
        ready.server_close()
        thread.join()

    out = capfd.readouterr().out
    assert "failed" not in out
    assert ('generate "The river mill"' in out) is lacks_template
    assert (" chat\n" in out) is not lacks_template
    assert ("and so on" in out) is lacks_template
    assert [prompt.text for prompt in gateway[0].prompts] == ["The river mill"] * lacks_template


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        pass


def entries_of(*lines: str) -> list[str]:
    left = iter(lines)
    found = []
    while (entry := read_entry(lambda prompt: next(left, None))) is not None:
        found.append(f"{'command ' if entry.is_command else ''}{entry.text}")
    return found


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["  hi  "], ["hi"]),
        ([""], [""]),
        (["/show"], ["command /show"]),
        (["  /show"], ["command /show"]),
        (['"""/show"""'], ["/show"]),
        (['"""', "a", "", "b", '"""'], ["a\n\nb"]),
        (['"""', "  a", '"""   '], ["  a"]),
        (["a\\", "b\\", "c"], ["a\nb\nc"]),
        (["a\\", "/show"], ["a\n/show"]),
        (["a\\", '"""b'], ['a\n"""b']),
        (['""""""'], [""]),
        (['say """a"""'], ['say """a"""']),
    ],
)
def test_lines_become_messages(lines: list[str], expected: list[str]) -> None:
    assert entries_of(*lines) == expected


@given(st.text().filter(lambda text: QUOTES not in text and not text.endswith('"')))
def test_any_text_can_be_said_between_quotes(text: str) -> None:
    text = text.replace("\r", "").strip("\n")
    lines = f"{QUOTES}\n{text}\n{QUOTES}".split("\n")

    assert entries_of(*lines) == [text]


@given(st.lists(st.text().map(lambda text: text.replace("\n", " ")), max_size=6))
def test_no_line_is_lost_or_said_twice(lines: list[str]) -> None:
    asked: list[str] = []

    def next_line(prompt: str) -> str | None:
        asked.append(prompt)
        return lines[len(asked) - 1] if len(asked) <= len(lines) else None

    with contextlib.suppress(InvalidRequest):
        while read_entry(next_line) is not None:
            pass

    assert len(asked) == len(lines) + 1, "every line, and once more for the end"


async def new_conversation() -> Conversation:
    return Conversation(InferenceClient("127.0.0.1:1"), "m", SamplingOptions())


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("/temperature 1", "/temperature is not a command; did you mean "),
        ("/hlep", "did you mean /help?"),
        ("/", "/ is not a command"),
        ("/set temprature 1", "temprature cannot be set; did you mean temperature?"),
        ("/set temperature hot", "temperature is 'hot'; it must be a number"),
        ("/set temperature 9", "temperature is 9; allowed is 0 to 2"),
        ("/set temperature nan", "temperature is "),
        ("/set temperature inf", "temperature is "),
        ("/set top-k 1.5", "top_k is '1.5'; it must be an integer"),
        ("/set top_p 0", "top_p is 0"),
        ("/set max_tokens 0", "max_tokens is 0"),
        ("/set seed 99999999999999999999999", "seed is 99999999999999999999999"),
        ("/set stop [1]", "stop is '[1]'; it must be"),
        ('/set stop ["a"', "stop is "),
        ("/set stop " + json.dumps(["x"] * 17), "stop has 17 entries"),
        ("/set ignore_eos maybe", "ignore_eos is 'maybe'; it must be true or false"),
        ("/save", "/save needs the name of a file"),
    ],
)
async def test_a_wrong_command_says_why_and_changes_nothing(command: str, error: str) -> None:
    conversation = await new_conversation()

    with pytest.raises(InvalidRequest) as caught:
        run_command(command, conversation)

    assert error in caught.value.message and "--" not in caught.value.message
    assert conversation.sampling == SamplingOptions()


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("/set temperature 0", "temperature", 0.0),
        ("/SET Temperature 1e-1", "temperature", 0.1),
        ("/set top-k -1", "top_k", 0),
        ("/set ignore_eos on", "ignore_eos", True),
        ("/set stop END of it", "stop", ("END of it",)),
        ('/set stop ["a", "\\n"]', "stop", ("a", "\n")),
        ("/set seed -1", "seed", -1),
    ],
)
async def test_a_value_is_set_and_unset(command: str, name: str, value: object) -> None:
    conversation = await new_conversation()

    run_command(command, conversation)
    assert getattr(conversation.sampling, name) == value
    assert (
        conversation.as_request()[{"max_tokens": "max_completion_tokens"}.get(name, name)]
        is not None
    )
    run_command(f"/set {name}", conversation)
    assert conversation.sampling == SamplingOptions()


async def test_numbers_that_exclude_each_other_are_refused_together() -> None:
    conversation = await new_conversation()
    run_command("/set max_tokens 5", conversation)

    with pytest.raises(InvalidRequest, match="min_tokens 6 is over max_tokens 5"):
        run_command("/set min_tokens 6", conversation)
    assert conversation.sampling == SamplingOptions(max_tokens=5)


async def test_help_and_show_name_everything() -> None:
    conversation = await new_conversation()
    help_text = "\n".join(run_command("/help", conversation) or [])
    shown = "\n".join(run_command("/show", conversation) or [])

    assert all(word in help_text for word, _, _ in COMMANDS)
    assert all(name in help_text and f"{name}: " in shown for name in sampling_names())
    assert run_command("/bye", conversation) is None is run_command("/exit", conversation)


async def test_a_file_that_cannot_be_written_is_an_error_and_not_the_end(
    gateway: tuple[FakeGateway, str], tmp_path: Path
) -> None:
    lines = f"/save {tmp_path}/none/x\none\n"

    status, out, err = await run_millrace("chat", "--lines", "--address", gateway[1], stdin=lines)

    assert (status, out) == (1, "1 turns\n")
    assert err == f"millrace: {tmp_path}/none/x: No such file or directory\n"
