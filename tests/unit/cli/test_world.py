"""The command in worlds that lack what most have: one line and a status, never a traceback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.__main__ import run_verb
from millrace.cli.crash import FILE_NAME
from millrace.rpc.server import RpcServer
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2

TEXT = "µ é 中 😀"
TIMEOUT_S = 60
COMMAND = [sys.executable, "-m", "millrace.cli"]
# Without HOME for a user whom no database knows.
NOBODY = """
import pwd, runpy
def unknown(*args):
    raise KeyError(args)
pwd.getpwuid = pwd.getpwnam = unknown
runpy.run_module("millrace.cli", run_name="__main__")
"""
VERBS = [
    *(["-h"], ["version"], ["status", "--json"], ["logs"], ["config", "show", "up"]),
    *(["models", "list"], ["trace", "--last"], ["generate", "x", "--address", "127.0.0.1:1"]),
    *(["down"], ["config", "init"], ["up", "--model", "./nowhere"], ["uninstall", "--json"]),
]
ASCII = {"PYTHONIOENCODING": "ascii"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS = [ASCII, LATIN, POSIX, {"LC_ALL": "C.UTF-8"}]


def environment(home: Path | str, **variables: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "MILLRACE_HOME": str(home), **variables}


def check(ended: dict[str, tuple[int, str]]) -> None:
    """By verb: its exit status and what it wrote to stderr."""
    for verb, (status, errors) in ended.items():
        assert "Traceback" not in errors, f"{verb}: {errors}"
        assert "Exception ignored" not in errors, f"{verb}: {errors}"
        assert "a defect of ours" not in errors, f"{verb}: {errors}"
        assert status in (0, 1, 2), f"{verb}: {status} {errors}"


def run_all(command: list[str], **options: Any) -> dict[str, tuple[int, str]]:
    """Every verb at once, each with the same options."""
    options.setdefault("stdout", subprocess.DEVNULL)
    started = [
        subprocess.Popen([*command, *verb], stderr=subprocess.PIPE, **options) for verb in VERBS
    ]
    ended = {}
    try:
        for verb, process in zip(VERBS, started, strict=True):
            _, errors = process.communicate(timeout=TIMEOUT_S)
            ended[" ".join(verb)] = (process.returncode, errors.decode(errors="replace"))
    finally:
        for process in started:
            process.kill()
            process.wait()
    return ended


def test_a_user_without_a_home(tmp_path: Path) -> None:
    environ = environment("")
    del environ["HOME"], environ["MILLRACE_HOME"]
    ended = run_all([sys.executable, "-c", NOBODY], env=environ)

    check(ended)
    for verb in ("status --json", "logs", "models list", "trace --last", "up --model ./nowhere"):
        assert "set MILLRACE_HOME to a folder" in ended[verb][1], verb
        assert ended[verb][1].count("\n") == 1, verb


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run_all(COMMAND, env=environment(tmp_path / "file" / "home"))

    check(ended)
    for verb in ("config init", "up --model ./nowhere"):
        assert "MILLRACE_HOME is" in ended[verb][1], ended[verb]


def test_a_folder_that_was_removed(tmp_path: Path) -> None:
    script = 'mkdir -p "$0/$$" && cd "$0/$$" && rmdir "$0/$$" && exec "$@"'
    command = ["bash", "-c", script, str(tmp_path), *COMMAND]

    for home in ("relative", str(tmp_path / "home")):
        check(run_all(command, env=environment(home)))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_streams_that_are_closed(tmp_path: Path, closed: str) -> None:
    command = ["bash", "-c", f'exec "$@" {closed}', "-", *COMMAND]
    check(run_all(command, env=environment(tmp_path)))


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone(tmp_path: Path, unbuffered: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    environ = environment(tmp_path, PYTHONUNBUFFERED=unbuffered)
    try:
        ended = run_all(COMMAND, env=environ, stdout=write_end)
    finally:
        os.close(write_end)

    check(ended)
    assert ended["-h"] == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = run_all(COMMAND, env=environment(tmp_path), stdout=full)

    check(ended)
    for verb in ("-h", "version"):
        assert ended[verb][0] == 1
        assert ended[verb][1].count("\n") == 1
        assert "No space left on device" in ended[verb][1]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_letters_in_paths_and_logs(tmp_path: Path, encoding: dict[str, str]) -> None:
    home = tmp_path / f"hömé {TEXT}"
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "valkey.log").write_text(f"{TEXT}\n", "utf-8")
    (home / "config.toml").write_text(f"[worker]\nmodel = '{TEXT}'\n", "utf-8")

    check(run_all(COMMAND, env=environment(home, **encoding)))
    shown = subprocess.run(
        [*COMMAND, "config", "show", "worker", "--json"],
        env=environment(home, **encoding),
        capture_output=True,
        check=True,
    )
    settings = {item["name"]: item for item in json.loads(shown.stdout)["worker"]}
    assert settings["model"]["value"] == TEXT


class Echo(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with letters of every kind, and keeps what it was asked."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    async def Generate(
        self, request: Any, context: Any
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.prompts.append(request.text)
        yield inference_pb2.GenerateResponse(delta=inference_pb2.Delta(text=TEXT, token_ids=[1]))
        yield inference_pb2.GenerateResponse(finished=finished())

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[inference_pb2.ChatResponse]:
        self.prompts.append(request.messages[-1].content)
        yield inference_pb2.ChatResponse(delta=inference_pb2.Delta(text=TEXT, token_ids=[1]))
        yield inference_pb2.ChatResponse(finished=finished())


def finished() -> inference_pb2.Finished:
    choice = inference_pb2.ChoiceFinished(finish_reason=types_pb2.FINISH_REASON_STOP)
    return inference_pb2.Finished(choices=[choice])


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, str]]:
    make: Any = Echo
    servicer, server = make(), RpcServer("gateway", "127.0.0.1", 0)
    add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
    server.add(add, servicer, "millrace.v1.InferenceService")
    yield servicer, await server.start()
    await server.stop(0)


async def ask(
    address: str, home: Path, encoding: dict[str, str], *arguments: str | bytes, given: bytes = b""
) -> tuple[int, bytes, str]:
    """Exit status, stdout and stderr of a command that asks the gateway at `address`."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, *arguments, "--address", address),
        env=environment(home, **encoding),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_S):
        output, errors = await process.communicate(given)
    return process.returncode or 0, output, errors.decode()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
async def test_text_goes_in_and_out_whatever_the_terminal_can_show(
    echo: tuple[Echo, str], tmp_path: Path, encoding: dict[str, str]
) -> None:
    servicer, address = echo
    letters = TEXT.encode()
    prompts: list[tuple[list[str | bytes], bytes]]
    prompts = [(["generate", letters], b""), (["chat", letters], b"")]
    if encoding is not LATIN:
        # There the user has said that the pipe speaks latin-1.
        prompts += [(["generate", "-"], letters), (["chat"], letters + b"\n")]
    for arguments, given in prompts:
        status, output, errors = await ask(address, tmp_path, encoding, *arguments, given=given)
        assert (status, errors) == (0, ""), arguments
        assert servicer.prompts.pop() == TEXT, arguments
        assert output.decode("latin-1" if encoding is LATIN else "utf-8").strip()


@pytest.mark.parametrize("encoding", [ENCODINGS[-1], POSIX], ids=str)
@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        (["generate", b"ab\xff"], b"", "the prompt is not UTF-8: byte 0xff at position 2"),
        (["generate", "-"], b"abc\xe9", "standard input is not UTF-8: byte 0xe9 at position 3"),
        (["generate", "x", "--stop", b"\xc3("], b"", "--stop is not UTF-8: byte 0xc3 at position"),
        (["chat", b"\xed\xa0\x80"], b"", "the message is not UTF-8: byte 0xed at position 0"),
        (["chat", "x", "--system", b"\xf0\x9f"], b"", "--system is not UTF-8: byte 0xf0"),
        (["chat"], b"\xff\n", "standard input is not UTF-8: byte 0xff at position 0"),
        (
            ["chat", "--lines"],
            b"\xff\n",
            "a line of standard input is not UTF-8: byte 0xff at position 0",
        ),
    ],
)
async def test_bytes_that_are_no_text_are_named_by_their_place(
    echo: tuple[Echo, str],
    tmp_path: Path,
    encoding: dict[str, str],
    arguments: list[str | bytes],
    given: bytes,
    message: str,
) -> None:
    status, _, errors = await ask(echo[1], tmp_path, encoding, *arguments, given=given)

    assert status == 1
    assert errors.startswith(f"millrace: {message}") and errors.count("\n") == 1
    assert echo[0].prompts == []


def test_a_defect_is_one_line_and_its_traceback_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("near nats://bob:hunter2@h:4222, invalid port 'hunter3'")

    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://bob:hunter3#x@proxy:1")
    monkeypatch.setattr("millrace.cli.version.run", fail)

    assert run_verb(["version"]) == 1

    shown = capsys.readouterr().err
    assert shown.startswith("millrace: version failed by a defect of ours (ZeroDivisionError: near")
    kept = tmp_path / "logs" / FILE_NAME
    assert str(kept) in shown and shown.count("\n") == 1
    assert kept.stat().st_mode & 0o777 == 0o600
    text = kept.read_text("utf-8")
    assert "ZeroDivisionError" in text and "in fail" in text
    assert "hunter" not in shown + text


def test_a_defect_without_a_place_for_its_traceback_says_how_to_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise KeyError("http")

    (tmp_path / "file").touch()
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("millrace.cli.version.run", fail)

    assert run_verb(["version"]) == 1
    assert "MILLRACE_DEBUG=1 shows the traceback" in capsys.readouterr().err


def test_wrong_usage_quotes_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["up", "--redis-ulr", "redis://:hunter2@h"],
        ["status", "redis://:hun#ter2@h"],
        ["redis://:hunter2@h"],
    ):
        try:
            assert run_verb(arguments) == 2
        except SystemExit as end:
            assert end.code == 2
        assert "ter2" not in capsys.readouterr().err
