"""Our services in containers: the image, compose, and what a user of both would do.

Runs where a container engine is found. See tests/containers/engine.py for what it can be told.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from .compose_copy import write_copy
from .container_stack import SERVICES, ContainerStack
from .engine import ContainerEngine, find_engine

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "Tell me of the rivers of Europe."}]
LONG = {"messages": QUESTION, "temperature": 0, "max_tokens": 160, "ignore_eos": True}
NUM_SEEN_BEFORE_A_KILL = 10


@pytest.fixture(scope="module")
def engine() -> ContainerEngine:
    found = find_engine()
    if isinstance(found, str):
        pytest.skip(f"no container was run: {found}")
    return found


@pytest.fixture(scope="module")
def image(engine: ContainerEngine) -> str:
    return engine.image()


@pytest.fixture(scope="module")
def stack(
    engine: ContainerEngine, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ContainerStack]:
    project = f"millrace-{uuid.uuid4().hex[:8]}"
    folder = tmp_path_factory.mktemp("compose")
    # One setting by the shell, the others by the file.
    (folder / ".env").write_text(
        "MILLRACE_WORKER_NUM_BLOCKS=256\nMILLRACE_LOG_FORMAT=json\nHF_TOKEN=hf_canary\n"
    )
    file = write_copy(folder, project, image, engine.mounts)
    started = ContainerStack(engine, file, project, {"MILLRACE_WORKER_QUANTIZATION": "int8"})
    try:
        started.up()
        yield started
    finally:
        started.down("-v")


@pytest.fixture(scope="module")
def undisturbed(stack: ContainerStack) -> str:
    """What the model says if nothing happens."""
    return str(stack.ask(**LONG)["choices"][0]["message"]["content"])


def text_of(event: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def test_image_brings_kernels_for_every_cpu_and_no_compiler(
    engine: ContainerEngine, image: str
) -> None:
    script = (
        "import shutil; from millrace.engine.kernels.cpu.build import shipped_library;"
        "from millrace.engine.kernels.cpu.instruction_paths import paths_of_machine;"
        "assert not any(map(shutil.which, ('c++', 'g++', 'clang++', 'cc')));"
        "print([path.name for path in paths_of_machine() if shipped_library(path)])"
    )
    shipped = engine.run("run", "--rm", "--read-only", image, "python", "-c", script)
    assert shipped.strip() in (
        "['amx', 'avx512_bf16', 'avx512', 'avx2']",
        "['neon_dotprod', 'neon']",
    )
    assert "CPU kernels: " in engine.run("run", "--rm", image, "millrace", "kernels")


def test_health_check_of_every_container_passes(stack: ContainerStack) -> None:
    for service in ("nats", "otel-collector", *SERVICES):
        stack.wait_healthy(service)


def test_chat_is_answered_at_the_published_port(stack: ContainerStack) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = stack.ask(messages=question, temperature=0, max_tokens=20)
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_settings_of_shell_and_file_arrive_and_the_token_only_where_it_is_used(
    stack: ContainerStack,
) -> None:
    environ = stack.execute("worker", "env").splitlines()
    assert "MILLRACE_WORKER_QUANTIZATION=int8" in environ
    assert "MILLRACE_WORKER_NUM_BLOCKS=256" in environ
    assert not [line for line in environ if line.startswith("MILLRACE_WORKER_DTYPE")]
    for service in SERVICES:
        assert "hf_canary" not in stack.execute(service, "env"), service
    assert "hf_canary" in stack.compose("run", "--rm", "model-init", "env")
    said = stack.engine.logs(stack.containers("scheduler")[0]).splitlines()
    assert said
    assert all(json.loads(line)["message"] for line in said)


def test_stream_and_its_trace_outlive_a_killed_worker(
    stack: ContainerStack, undisturbed: str
) -> None:
    (worker,) = stack.containers("worker")
    request_id, texts = "", []
    for event in stack.stream(**LONG):
        request_id = event["id"]
        texts.append(text_of(event))
        if len(texts) == NUM_SEEN_BEFORE_A_KILL:
            stack.kill_worker(worker)

    assert "".join(texts) == undisturbed
    stack.wait_ready()
    assert "worker lost" in trace_of(stack, request_id, "gateway", "tokenizer", "worker")


def test_added_worker_takes_requests_and_is_found_by_name(
    stack: ContainerStack, undisturbed: str
) -> None:
    stack.compose("up", "-d", "--no-recreate", "--scale", "worker=2", "worker")
    stack.wait(lambda: num_workers(stack) == 2, "the second worker is not used")
    lookup = (
        "import socket, urllib.request as web;"
        "found = {item[4][0] for item in socket.getaddrinfo('worker', 9464, socket.AF_INET)};"
        "assert all(b'millrace_' in web.urlopen(f'http://{a}:9464/metrics').read() for a in found);"
        "print(len(found))"
    )
    assert stack.execute("gateway", "python", "-c", lookup).strip() == "2"

    texts: list[str] = []
    for event in stack.stream(**LONG):
        texts.append(text_of(event))
        if len(texts) == NUM_SEEN_BEFORE_A_KILL:
            stack.kill_worker(stack.containers("worker")[0])
    assert "".join(texts) == undisturbed
    stack.wait(lambda: num_workers(stack) == 2, "the killed worker did not come back")


def test_answers_models_and_traces_outlive_down_and_up(stack: ContainerStack) -> None:
    body = {"messages": QUESTION, "max_tokens": 12, "idempotency_key": "order-77"}
    before = stack.ask(**body)
    assert not before["millrace"].get("cached")

    stack.down()
    assert not stack.containers("worker")
    stack.up()

    again = stack.ask(**body)
    assert again["millrace"]["cached"]
    assert again["choices"][0]["message"] == before["choices"][0]["message"]
    assert trace_of(stack, before["id"], "gateway")


def trace_of(stack: ContainerStack, answer_id: str, *services: str) -> str:
    """What `millrace trace` says in a container, once the spans of all services have arrived."""
    request_id = answer_id.removeprefix("chatcmpl-")
    told = ""

    def is_whole() -> bool:
        nonlocal told
        told = stack.execute("gateway", "millrace", "trace", request_id, is_checked=False)
        return all(service in told for service in services)

    stack.wait(is_whole, f"the trace of {request_id} lacks some of {services}")
    return told


def num_workers(stack: ContainerStack) -> int:
    script = (
        "import urllib.request as web;"
        "print(web.urlopen('http://scheduler:9464/metrics').read().decode())"
    )
    said = stack.execute("gateway", "python", "-c", script)
    lines = [line for line in said.splitlines() if line.startswith("millrace_num_workers")]
    return int(float(lines[0].split()[-1]))
