"""Clients that are not ours: the `openai` package, and stubs made from the protos alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from millrace.testing.stack import Stack
from tests.e2e.conftest import CACHE, DEFAULT_MODEL
from tests.e2e.prompts import load_prompts, load_references

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
NODE_CLIENT = Path(__file__).parent / "node"
CAPITAL = next(prompt for prompt in load_prompts() if prompt.name == "capital")
QUESTION = CAPITAL.messages[0]["content"]
NUM_TOKENS = len(load_references()[CAPITAL.name].output_token_ids)
ANSWER = "The capital of France is Paris."
TIMEOUT_S = 60
# How npm names what a machine without its registry meets.
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")

pytestmark = pytest.mark.e2e


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{stack.http_url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
    ) as connected:
        yield connected


def test_openai_client_streams_a_chat(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=DEFAULT_MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        max_completion_tokens=48,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == ANSWER
    assert len([text for text in texts if text]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == NUM_TOKENS


def test_openai_client_streams_a_completion(client: openai.OpenAI) -> None:
    def create(prompt: str) -> list[Any]:
        stream = client.completions.create(
            model=DEFAULT_MODEL, prompt=prompt, max_tokens=12, temperature=0, stream=True
        )
        return [chunk.choices[0] for chunk in stream if chunk.choices]

    whole = client.completions.create(
        model=DEFAULT_MODEL, prompt="The river", max_tokens=12, temperature=0
    )
    choices = create("The river")
    assert "".join(choice.text for choice in choices) == whole.choices[0].text
    assert whole.choices[0].text.startswith(" of fire, a metaphor")
    assert choices[-1].finish_reason == "length"
    assert len(choices) > 2


def test_openai_client_lists_models(client: openai.OpenAI) -> None:
    assert DEFAULT_MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(DEFAULT_MODEL).id == DEFAULT_MODEL


def test_openai_client_raises_bad_request_error_with_the_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=DEFAULT_MODEL, messages=[{"role": "user", "content": "Hi"}], temperature=3.5
        )
    assert caught.value.param == "temperature"
    assert "3.5" in caught.value.message
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_openai_client_raises_not_found_error_for_an_unknown_model(
    client: openai.OpenAI, is_streamed: bool
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(
            model="no-such-model",
            messages=[{"role": "user", "content": "Hi"}],
            stream=is_streamed,
        )
    assert caught.value.param == "model"
    assert "no-such-model" in caught.value.message


def test_plain_grpc_client_made_from_the_protos_streams_a_chat(
    stack: Stack, tmp_path: Path
) -> None:
    protos = [f"millrace/v1/{name}.proto" for name in ("inference", "types")]
    out = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    compiler = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), *out, *protos]
    subprocess.run(compiler, check=True, timeout=TIMEOUT_S)
    packages = sysconfig.get_paths()["purelib"]
    # -S leaves out the .pth files, which is where an editable install of ours would come from.
    done = subprocess.run(
        [sys.executable, "-S", str(Path(__file__).parent / "plain_grpc_chat.py")]
        + [stack.grpc_address, "48", QUESTION],
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join([str(tmp_path), packages])},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["files"]) >= 3
    assert all(Path(file).is_relative_to(tmp_path) for file in said["files"]), said["files"]
    _assert_streamed_chat(said)


@pytest.mark.slow
def test_node_client_made_from_the_protos_streams_a_chat(stack: Stack) -> None:
    folder = _installed_node_client()
    done = subprocess.run(
        ["node", "chat.mjs", stack.grpc_address, str(PROTOS), "48", QUESTION],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    _assert_streamed_chat(said)
    assert said["finished"]["choices"][0]["finish_reason"] == "FINISH_REASON_STOP"
    assert said["finished"]["usage"]["num_output_tokens"] == NUM_TOKENS


def _assert_streamed_chat(said: dict[str, Any]) -> None:
    assert "".join(said["texts"]) == ANSWER
    assert said["events"][0] == "started"
    assert said["events"][-1] == "finished"
    assert said["events"].count("delta") > 1


def _installed_node_client() -> Path:
    """A copy of the client with its packages, installed once. Skips where that cannot be."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)}: not installed on this machine")
    folder = CACHE / "node"
    wanted = (NODE_CLIENT / "package.json").read_bytes()
    installed = folder / "node_modules" / "installed.json"
    shutil.copytree(NODE_CLIENT, folder, dirs_exist_ok=True)
    if installed.exists() and installed.read_bytes() == wanted:
        return folder
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=1"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    met = [code for code in OFFLINE if code in done.stderr]
    if done.returncode != 0 and met:
        pytest.skip(f"npm cannot reach its registry: {', '.join(met)}")
    assert done.returncode == 0, done.stderr
    installed.write_bytes(wanted)
    return folder
