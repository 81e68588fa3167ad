"""A model that cannot compute one token: its prompts end with an error, all others as before."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from millrace.bus.setup import init_bus
from millrace.testing.servers import LocalServer, start_nats
from tests.faults.local_service import make_service
from tests.faults.tiny_model import write_tiny_model

pytestmark = pytest.mark.e2e

MODEL = "tiny"
WAIT_S = 60.0
REASON = "the model's output is not finite"
GOOD = ["Once", "Streams of tokens", "The quick brown fox", "def main", "again and again."]
BAD = ["Z", "Once upon a Z in time", "Streams of tokens become textZ"]
WAYS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "logprobs": 3},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 0.8, "seed": 5, "top_p": 0.9, "logprobs": 0},
]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LocalServer]]:
    folder = tmp_path_factory.mktemp("broken")
    model = write_tiny_model(folder / MODEL)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][tokenizer.token_to_id("Z"), 3] = math.inf
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        nats = stack.enter_context(start_nats(folder))
        threads.submit(lambda: asyncio.run(init_bus(nats.url, [MODEL]))).result(WAIT_S)
        processes = _make(folder, model, nats.url)
        for server in processes.values():
            stack.callback(server.stop)
        list(threads.map(LocalServer.start, processes.values()))
        yield processes


def _make(folder: Path, model: Path, nats_url: str) -> dict[str, LocalServer]:
    tokenizer = make_service("tokenizer", folder, models=model)
    return {
        "tokenizer": tokenizer,
        "scheduler": make_service("scheduler", folder, nats_url=nats_url, model=MODEL),
        "worker": make_service(
            "worker", folder, nats_url=nats_url, model=model, num_threads=1, dtype="float32"
        ),
        "gateway": make_service(
            "gateway",
            folder,
            port_setting="http_port",
            grpc_port=0,
            nats_url=nats_url,
            tokenizer_addresses=tokenizer.url,
        ),
    }


@pytest.fixture
async def client(services: dict[str, LocalServer]) -> Any:
    url = f"http://{services['gateway'].url}"
    async with httpx.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False) as made:
        async with asyncio.timeout(WAIT_S):
            while True:
                if (await made.get("/ready")).status_code == 200:
                    break
                await asyncio.sleep(0.1)
        yield made


def strict(text: str) -> Any:
    """JSON as RFC 8259 has it."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


async def complete(client: httpx.AsyncClient, prompt: str, way: dict[str, Any]) -> Any:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 12, **way}
    reply = await client.post("/v1/completions", json=body)
    if reply.status_code == 200:
        choice = strict(reply.text)["choices"][0]
        return choice["text"], choice["finish_reason"], choice["logprobs"]
    return reply.status_code, strict(reply.text)["error"]["message"]


async def stream(client: httpx.AsyncClient, prompt: str, way: dict[str, Any]) -> list[Any]:
    """The events, up to the last."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "stream": True, **way}
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        if reply.status_code != 200:
            return [strict((await reply.aread()).decode())]
        lines = [line async for line in reply.aiter_lines() if line.startswith("data: {")]
    return [strict(line.removeprefix("data: ")) for line in lines]


async def test_prompts_with_the_broken_token_end_internal_and_the_others_as_before(
    services: dict[str, LocalServer], client: httpx.AsyncClient
) -> None:
    worker = services["worker"].process
    assert worker is not None
    for way in WAYS:
        before = [await complete(client, prompt, way) for prompt in GOOD]
        assert all(isinstance(text, str) and finish for text, finish, _ in before), before

        crowd = [*GOOD, *BAD, *GOOD, *BAD]
        together = await asyncio.gather(*(complete(client, prompt, way) for prompt in crowd))
        after = [await complete(client, prompt, way) for prompt in GOOD]

        for prompt, answer in zip(crowd, together, strict=True):
            if prompt in BAD:
                assert answer == (500, REASON)
            else:
                assert answer == before[GOOD.index(prompt)]
        assert after == before
    assert worker.poll() is None


async def test_streams_end_with_an_error_event_before_any_text(client: httpx.AsyncClient) -> None:
    for way in WAYS:
        for prompt in BAD:
            (event,) = await stream(client, prompt, way)
            assert event["error"]["message"] == REASON
            assert event["error"]["type"] == "server_error"


async def test_chats_end_the_same(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Z"}], "logprobs": True}

    reply = await client.post("/v1/chat/completions", json={**body, "max_tokens": 5})

    assert (reply.status_code, strict(reply.text)["error"]["message"]) == (500, REASON)


def test_worker_refuses_a_model_without_any_finite_output(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / MODEL)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    server = make_service(
        "worker", tmp_path, nats_url="nats://127.0.0.1:1", model=model, num_threads=1
    )

    with pytest.raises(RuntimeError):
        server.start()
    server.stop()

    log = server.log.read_text()
    assert "Traceback" not in log
    (line,) = [line for line in log.splitlines() if "cannot generate" in line]
    assert f"the model cannot generate: {REASON}" in line
