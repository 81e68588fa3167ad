"""What holds if a request is silent: the model's wishes, at both edges, before any key."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.membership import WorkerRegistration
from millrace.core.sampling import SamplingDefaults, SamplingParams
from millrace.gateway.calls import begin_call
from millrace.gateway.directory import ModelDirectory
from millrace.gateway.generation import CacheMode
from millrace.gateway.servicer import SERVICE_NAME, InferenceServicer
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from tests.unit.gateway.conftest import MODEL

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
WISHES = SamplingDefaults(temperature=0.25, top_p=0.5, repetition_penalty=1.25)
IN_FORCE = (0.25, 0.5, 0, 0.0, 1.25)
NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
ROUTES = [
    (CHAT, {"messages": HI}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/generate", {"prompt": "hi"}),
]


@pytest.fixture(autouse=True)
async def with_wishes(gateway: Harness) -> None:
    wanted = dataclasses.replace(MODEL, default_sampling=WISHES)
    gateway.directory.on_worker("w1", WorkerRegistration("w1", "b1", "x:1", wanted, 10, 4, 4))


def used(gateway: Harness) -> tuple[float, ...]:
    return tuple(getattr(gateway.queued.sampling, name) for name in NAMES)


@pytest.fixture
async def stub(gateway: Harness) -> AsyncIterator[Any]:
    server = RpcServer("gateway", "127.0.0.1", 0)
    servicer = InferenceServicer(gateway.pipeline, gateway.directory)
    server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE_NAME)
    channel = open_channel(await server.start())
    yield inference_pb2_grpc.InferenceServiceStub(channel)
    await channel.close()
    await server.stop(0)


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_silent_request_takes_the_models_wishes(
    gateway: Harness, path: str, body: dict[str, Any]
) -> None:
    async with gateway.client() as client:
        reply = (await client.post(path, json=body)).json()

    assert used(gateway) == IN_FORCE
    told = reply["sampling"] if path == "/generate" else reply["millrace"]["sampling"]
    assert tuple(told.values()) == IN_FORCE


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_explicit_value_always_wins(
    gateway: Harness, path: str, body: dict[str, Any]
) -> None:
    asked = dict(zip(NAMES, (1.0, 1.0, 0, 0.0, 1.0), strict=True))
    async with gateway.client() as client:
        await client.post(path, json={**body, **asked})
    assert used(gateway) == (1.0, 1.0, 0, 0.0, 1.0)


async def test_grpc_takes_them_and_tells_them(gateway: Harness, stub: Any) -> None:
    request = inference_pb2.GenerateRequest(text="hi")
    events = [event async for event in stub.Generate(request)]
    assert used(gateway) == IN_FORCE
    told = events[0].started.sampling
    assert tuple(getattr(told, name) for name in NAMES) == IN_FORCE

    request.options.sampling.temperature = 1.0
    [event async for event in stub.Generate(request)]
    assert used(gateway) == (1.0, *IN_FORCE[1:])


async def test_model_tells_them(gateway: Harness, stub: Any) -> None:
    async with gateway.client() as client:
        info = (await client.get("/model/info")).json()
    model = (await stub.GetModel(inference_pb2.GetModelRequest(model="tiny"))).model

    assert info["defaultSampling"] == {
        "temperature": 0.25,
        "topP": 0.5,
        "topK": 0,
        "minP": 0.0,
        "repetitionPenalty": 1.25,
    }
    assert tuple(getattr(model.default_sampling, name) for name in NAMES) == IN_FORCE


def test_setting_openai_leaves_the_wishes_out() -> None:
    directory = ModelDirectory(takes_model_defaults=False)
    wanted = dataclasses.replace(MODEL, default_sampling=WISHES)
    directory.on_worker("w1", WorkerRegistration("w1", "b1", "x:1", wanted, 10, 4, 4))
    assert directory.find("tiny").default_sampling == SamplingDefaults()


async def test_same_request_said_or_silent_is_one_answer_of_the_cache(gateway: Harness) -> None:
    for fields in ({}, {"temperature": 0.25}, {"top_p": 0.5, "min_p": 0.0}):
        sampling = {"seed": 1, **fields}
        answer = await gateway.open(text="a", cache=CacheMode.USE, sampling=sampling)
        await gateway.read(answer)
        await gateway.pipeline.finish_errands()
    assert len(gateway.bus.published) == 1
    answer = await gateway.open(
        text="a", cache=CacheMode.USE, sampling={"seed": 1, "temperature": 1.0}
    )
    await gateway.read(answer)
    assert len(gateway.bus.published) == 2


async def test_same_request_said_or_silent_is_one_of_a_key(gateway: Harness) -> None:
    for fields in ({}, {"temperature": 0.25, "repetition_penalty": 1.25}):
        await gateway.read(await gateway.open(idempotency_key="k", sampling=fields))
        await gateway.pipeline.finish_errands()
    assert len(gateway.bus.published) == 1


async def test_greedy_by_the_models_wish_is_deterministic(gateway: Harness) -> None:
    wanted = dataclasses.replace(MODEL, default_sampling=SamplingDefaults(temperature=0.0))
    gateway.directory.on_worker("w1", WorkerRegistration("w1", "b1", "x:1", wanted, 10, 4, 4))
    for _ in range(2):
        await gateway.read(await gateway.open(text="a", cache=CacheMode.USE))
        await gateway.pipeline.finish_errands()
    assert len(gateway.bus.published) == 1


@pytest.mark.parametrize(
    ("path", "body", "max_tokens"),
    [
        (CHAT, {"messages": HI}, 61),
        ("/v1/completions", {"prompt": "hi"}, 16),
        ("/v1/completions", {"prompt": "hi", "max_tokens": None}, 16),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 40}, 40),
        # Nobody asked for 16: near the end of the context less is no error.
        ("/v1/completions", {"prompt": "x" * 60}, 4),
        ("/generate", {"prompt": "hi"}, 62),
    ],
)
async def test_most_tokens_if_the_request_does_not_say(
    gateway: Harness, path: str, body: dict[str, Any], max_tokens: int
) -> None:
    async with gateway.client() as client:
        reply = await client.post(path, json={**body, "ignore_eos": True})
    assert reply.status_code == 200
    assert gateway.queued.max_tokens == max_tokens


async def test_grpc_generates_to_the_end_of_the_context(gateway: Harness, stub: Any) -> None:
    [event async for event in stub.Generate(inference_pb2.GenerateRequest(text="hi"))]
    assert gateway.queued.max_tokens == 62


async def test_min_tokens_over_the_routes_default_says_so(gateway: Harness) -> None:
    async with gateway.client() as client:
        body = {"prompt": "hi", "min_tokens": 20}
        reply = await client.post("/v1/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "min_tokens")
    assert error["message"] == "min_tokens is 20; max_tokens is 16 if left out"


async def test_drawn_seeds_are_read_exactly_by_doubles(gateway: Harness) -> None:
    seeds = []
    async with gateway.client() as client:
        for _ in range(50):
            reply = await client.post("/generate", json={"prompt": "hi"})
            seeds.append(reply.json()["seed"])
    assert all(int(float(seed)) == seed < 2**53 for seed in seeds)
    assert len(set(seeds)) == 50
    assert max(seeds) > 2**32


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63, 2**64 - 1])
async def test_a_seed_comes_back_as_it_was_given(gateway: Harness, seed: int) -> None:
    body = {"prompt": "hi", "seed": seed, "idempotency_key": "k"}
    async with gateway.client() as client:
        for _ in range(2):
            reply = await client.post("/generate", json=body)
            await gateway.pipeline.finish_errands()
            assert reply.json()["seed"] == seed
    assert gateway.queued.sampling.seed == seed % 2**64
    assert len(gateway.bus.published) == 1


async def test_both_spellings_of_a_seed_are_one_request_at_both_edges(
    gateway: Harness, stub: Any
) -> None:
    async with gateway.client() as client:
        body = {"prompt": "hi", "seed": -2, "idempotency_key": "k"}
        await client.post("/generate", json=body)
    await gateway.pipeline.finish_errands()
    options = inference_pb2.RequestOptions(
        sampling=types_pb2.SamplingParams(seed=2**64 - 2), idempotency_key="k"
    )
    request = inference_pb2.GenerateRequest(text="hi", options=options)
    events = [event async for event in stub.Generate(request)]
    assert events[-1].finished.cached
    assert events[0].started.seed == 2**64 - 2


def test_resolving_leaves_the_params_themselves_alone() -> None:
    silent = SamplingParams(top_k=5)
    whole = silent.resolved(WISHES)
    assert (silent.temperature, whole.temperature, whole.top_k) == (None, 0.25, 5)
    assert whole.resolved(SamplingDefaults(temperature=2.0)) is whole


async def test_span_has_the_values_in_force(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = begin_call("chat", {})
    seen: dict[str, Any] = {}
    monkeypatch.setattr(call.span, "is_recording", lambda: True)
    monkeypatch.setattr(call.span, "set_attributes", seen.update, raising=False)
    from millrace.gateway.generation import GenerationRequest

    answer = await gateway.pipeline.open(GenerationRequest(text="a"), call)
    await gateway.read(answer)
    assert seen["gen_ai.request.temperature"] == 0.25
