"""Every example runs as it is written, against a real stack."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from millrace.testing.stack import Stack

EXAMPLES = Path(__file__).parents[2] / "examples"
ANSWER = "The capital of France is Paris."
TIMEOUT_S = 60
COMMANDS = {
    "chat.sh": ["sh"],
    "openai_chat.py": [sys.executable],
    "grpc_chat.py": [sys.executable],
    "chat.mjs": ["node"],
}

pytestmark = pytest.mark.e2e


def run_example(stack: Stack, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = COMMANDS[name]
    needed = {"chat.sh": "curl", "chat.mjs": "node"}.get(name)
    if needed and shutil.which(needed) is None:
        pytest.skip(f"{needed}: not installed on this machine")
    return subprocess.run(
        [*program, str(EXAMPLES / name), *arguments],
        env={**os.environ, "MILLRACE_URL": stack.http_url, "MILLRACE_GRPC": stack.grpc_address},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "chat.sh"])
def test_an_example_prints_the_answer(stack: Stack, name: str) -> None:
    done = run_example(stack, name)

    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER + "\n", "")


def test_curl_gets_a_whole_answer_and_a_stream(stack: Stack) -> None:
    done = run_example(stack, "chat.sh")

    assert (done.returncode, done.stderr) == (0, "")
    whole, *events = done.stdout.strip().splitlines()
    assert json.loads(whole)["choices"][0]["message"]["content"] == ANSWER
    data = [line.removeprefix("data: ") for line in events if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    choices = [choice for chunk in data for choice in json.loads(chunk)["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == ANSWER


def test_what_the_server_refuses_is_said_and_a_failure(stack: Stack) -> None:
    done = run_example(stack, "chat.mjs", "x y " * 20_000)

    assert (done.returncode, done.stdout) == (1, "")
    assert "tokens" in done.stderr


def test_the_page_may_ask_the_gateway_with_the_code_that_node_runs(stack: Stack) -> None:
    page = (EXAMPLES / "chat.html").read_text(encoding="utf-8")
    origin = "http://127.0.0.1:8000"
    preflight = httpx.options(
        f"{stack.http_url}/v1/chat/completions",
        headers={
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        },
    )

    assert re.findall(r'from "(.+?)"', page) == ["./chat_stream.mjs"]
    assert not re.findall(r'(?:src|href)="', page), "nothing is fetched from elsewhere"
    assert preflight.headers["access-control-allow-origin"] in (origin, "*")


def test_every_example_is_listed_and_run() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or f"({path.name})" in listed
    programs = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    assert programs == {*COMMANDS, "chat.html", "chat_stream.mjs"}
