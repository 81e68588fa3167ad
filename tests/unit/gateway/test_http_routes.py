"""Completions, plain routes, models, health, readiness, metrics, cache stats."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.membership import SchedulerStatus, WorkerRegistration

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

EOS = 256
TEXT = "/v1/completions"


def events_of(text: str) -> list[Any]:
    payloads = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [p if p == "[DONE]" else json.loads(p) for p in payloads]


@pytest.mark.parametrize(
    ("prompt", "num_prompts", "num_tokens"),
    [
        ("abc", 1, 3),
        (["abc", "de"], 2, 5),
        ([1, 2, 3, 4], 1, 4),
        ([[1, 2], [3]], 2, 3),
    ],
)
async def test_completion_takes_every_kind_of_prompt(
    gateway: Harness, prompt: Any, num_prompts: int, num_tokens: int
) -> None:
    async with gateway.client() as client:
        reply = await client.post(TEXT, json={"prompt": prompt, "n": 2})

    body = reply.json()
    assert body["object"] == "text_completion"
    assert body["id"] == f"cmpl-{reply.headers['x-request-id']}"
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * num_prompts))
    assert {choice["text"] for choice in body["choices"]} == {"Hello, world!"}
    assert body["usage"]["prompt_tokens"] == num_tokens
    assert body["usage"]["completion_tokens"] == 10 * num_prompts


@pytest.mark.parametrize("prompt", ["abc", ["abc", "de"]])
async def test_completion_streams(gateway: Harness, prompt: Any) -> None:
    body = {"prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
    async with gateway.client() as client:
        reply = await client.post(TEXT, json=body)

    events = events_of(reply.text)
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 5 * (1 if prompt == "abc" else 2)
    choices = [choice for event in events[:-2] for choice in event["choices"]]
    for index in {choice["index"] for choice in choices}:
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == "Hello, world!"
        assert own[-1]["finish_reason"] == "stop"
    assert all(event["usage"] is None for event in events[:-2])


async def test_completion_logprobs(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post(TEXT, json={"prompt": "a", "logprobs": 1})

    logprobs = reply.json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["Hello", ", ", "world", "!", ""]
    assert logprobs["token_logprobs"] == [-0.5] * 5
    assert logprobs["top_logprobs"][0] == {"Hello": -0.5}
    assert logprobs["text_offset"] == [0, 5, 7, 12, 13]


async def test_refused_prompt_refuses_the_completion(gateway: Harness) -> None:
    async with gateway.client() as client:
        whole = await client.post(TEXT, json={"prompt": ["ok", "a" * 64]})
        streamed = await client.post(TEXT, json={"prompt": ["ok", "a" * 64], "stream": True})

    for reply in (whole, streamed):
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "context_length_exceeded"
    await gateway.until(lambda: gateway.pipeline.num_in_flight == 0)


@pytest.mark.parametrize("fields", [{"maxTokens": 3, "topP": 0.5}, {"max_tokens": 3, "top_p": 0.5}])
async def test_generate_answers_with_counts(gateway: Harness, fields: dict[str, Any]) -> None:
    async with gateway.client() as client:
        reply = await client.post("/generate", json={"prompt": "hey", "temperature": 0, **fields})

    body = reply.json()
    assert body.pop("latencyMs") > 0
    assert body == {
        "text": "Hello, world",
        "inputTokens": 3,
        "outputTokens": 3,
        "totalTokens": 6,
        "finishReason": "length",
        "cached": False,
        "model": "tiny",
        "requestId": reply.headers["x-request-id"],
        "seed": gateway.queued.sampling.seed,
        "sampling": {
            "temperature": 0.0,
            "topP": 0.5,
            "topK": 0,
            "minP": 0.0,
            "repetitionPenalty": 1.0,
        },
    }
    assert gateway.queued.sampling.top_p == 0.5


async def test_generate_marks_cached_answers(gateway: Harness) -> None:
    body = {"prompt": "hey", "temperature": 0, "cache": "use"}
    async with gateway.client() as client:
        first = await client.post("/generate", json=body)
        await gateway.pipeline.finish_errands()
        second = await client.post("/generate", json=body)

    assert (first.json()["cached"], second.json()["cached"]) == (False, True)
    assert first.json()["text"] == second.json()["text"]


async def test_generate_streams(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post("/generate", json={"prompt": "hey", "stream": True})

    events = events_of(reply.text)
    assert events[-1] == "[DONE]"
    assert "".join(event["text"] for event in events[:-2]) == "Hello, world!"
    assert events[-2]["outputTokens"] == 5
    assert events[-2]["finishReason"] == "stop"


async def test_batch_answers_in_order_with_errors_per_item(gateway: Harness) -> None:
    requests = [{"prompt": "a"}, {"prompt": ""}, {"prompt": "b", "maxTokens": 1}, 5]
    async with gateway.client() as client:
        reply = await client.post("/generate/batch", json={"requests": requests})

    body = reply.json()
    assert body["size"] == 4
    assert body["totalLatencyMs"] > 0
    answered = [each["latencyMs"] for each in body["results"] if "latencyMs" in each]
    assert body["meanLatencyMs"] == pytest.approx(sum(answered) / 2, abs=0.002)
    assert [result.get("text") for result in body["results"]] == [
        "Hello, world!",
        None,
        "Hello",
        None,
    ]
    assert body["results"][1]["error"]["param"] == "prompt"
    assert body["results"][3]["error"]["param"] == "requests[3]"
    ids = {result["requestId"] for result in body["results"]}
    assert len(ids) == 4
    assert reply.headers["x-request-id"] not in ids


async def test_models_are_listed(gateway: Harness) -> None:
    async with gateway.client() as client:
        listed = (await client.get("/v1/models")).json()
        one = await client.get("/v1/models/small")
        missing = await client.get("/v1/models/org/other")

    expected = {
        "id": "tiny",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "millrace",
        "aliases": ["small"],
        "max_model_len": 64,
    }
    assert listed == {"object": "list", "data": [expected]}
    assert one.json() == expected
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_model_info_shows_config_and_counts(gateway: Harness) -> None:
    async with gateway.client() as client:
        info = (await client.get("/model/info")).json()

    assert info["config"] == {"hidden_size": 8}
    assert (info["parameters"], info["bytes"], info["quantization"]) == (1000, 4000, "none")
    assert info["workers"] == 1


async def test_config_of_a_checkpoint_never_makes_the_reply_no_json(gateway: Harness) -> None:
    config = '{"a": Infinity, "b": [-Infinity, NaN, 1e999, 1.5], "c": 1}'
    wanted = dataclasses.replace(gateway.directory.find("tiny"), config_json=config)
    gateway.directory.on_worker("w1", WorkerRegistration("w1", "b1", "x:1", wanted, 10, 4, 4))
    async with gateway.client() as client:
        info = (await client.get("/model/info")).json()

    assert info["config"] == {"a": None, "b": [None, None, None, 1.5], "c": 1}


async def test_health_tells_model_cache_uptime_and_memory(gateway: Harness) -> None:
    async with gateway.client() as client:
        health = (await client.get("/health")).json()

    assert (health["status"], health["model"], health["cache"]) == ("ok", "tiny", "connected")
    assert health["uptime"] == health["uptimeS"] >= 0
    assert health["memory"] == health["memoryBytes"] > 1_000_000
    assert health["version"]


async def test_cache_stats(gateway: Harness) -> None:
    async with gateway.client() as client:
        stats = (await client.get("/cache/stats")).json()

    assert stats["connected"] is True
    assert (stats["keys"], stats["memory"], stats["hitRate"]) == (0, 10, 0)
    assert (stats["memoryBytes"], stats["maxMemoryBytes"]) == (10, 100)


async def test_metrics_are_exposed(gateway: Harness) -> None:
    async with gateway.client() as client:
        await client.post("/generate", json={"prompt": "hey"})
        reply = await client.get("/metrics")

    assert "millrace_request_success_total" in reply.text
    assert reply.headers["content-type"].startswith("text/plain")


async def ready(gateway: Harness) -> tuple[int, dict[str, Any]]:
    async with gateway.client() as client:
        reply = await client.get("/ready")
    return reply.status_code, reply.json()


async def test_ready_when_everything_is_there(gateway: Harness) -> None:
    status, body = await ready(gateway)

    assert status == 200
    assert body == {
        "status": "ready",
        "checks": {"nats": True, "tokenizer": True, "scheduler": True, "worker": True},
        "degraded": [],
        "reasons": {},
    }


async def test_degraded_without_cache_is_still_ready(gateway: Harness) -> None:
    gateway.cache.is_connected = False

    status, body = await ready(gateway)

    assert (status, body["degraded"]) == (200, ["cache"])


async def test_degraded_without_a_collector_is_still_ready(gateway: Harness) -> None:
    gateway.loses_spans = True

    status, body = await ready(gateway)

    assert (status, body["degraded"]) == (200, ["collector"])
    assert body["reasons"] == {"collector": "traces are not taken"}


async def test_not_ready_without_nats(gateway: Harness) -> None:
    gateway.bus.is_up = False

    status, body = await ready(gateway)

    assert (status, body["status"], body["checks"]["nats"]) == (503, "not_ready", False)


async def test_not_ready_without_tokenizer(gateway: Harness) -> None:
    gateway.tokenizer.is_serving = False

    status, body = await ready(gateway)

    assert (status, body["checks"]["tokenizer"]) == (503, False)


async def test_not_ready_without_scheduler(gateway: Harness) -> None:
    gateway.directory.on_detached("tiny")

    status, body = await ready(gateway)

    assert (status, body["checks"]["scheduler"]) == (503, False)


async def test_not_ready_without_worker(gateway: Harness) -> None:
    info = gateway.directory.find("tiny")
    gateway.directory.on_status(SchedulerStatus(info, 0, 0, 0, 0, 0, 7))

    status, body = await ready(gateway)

    assert (status, body["checks"]["worker"]) == (503, False)


async def test_not_ready_while_draining(gateway: Harness) -> None:
    gateway.pipeline.start_draining()

    status, body = await ready(gateway)

    assert (status, body["status"]) == (503, "draining")
