"""Every refusal over HTTP: status, body, headers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def check_error(reply: Any, status: int, param: str | None, code: str | None) -> dict[str, Any]:
    body = reply.json()
    assert reply.status_code == status, body
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code), error
    assert len(reply.headers["x-request-id"]) == 32
    assert reply.headers["traceresponse"].startswith("00-")
    return error


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"model": "a", "model": "b"}', "'model' stands twice"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "-Infinity"),
        (b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "deeper than 64"),
        (b'{"x": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"x": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
    ],
)
async def test_broken_body_is_400(gateway: Harness, raw: bytes, words: str) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, content=raw, headers={"content-type": "application/json"})

    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": None}, "messages", ["missing"]),
        ({"messages": []}, "messages", ["0 entries"]),
        ({"messages": "hi"}, "messages", ['"hi"', "a list"]),
        ({"messages": [1]}, "messages[0]", ["object"]),
        ({"messages": [{}] * 5000}, "messages", ["5000", "4096"]),
        ({"messages": [{"role": "user"}]}, "messages[0].content", ["missing"]),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", ["is null"]),
        ({"messages": [{"content": "x"}]}, "messages[0].role", ["missing"]),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role", ["1", "a string"]),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", ["5"]),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", ["D800"]),
        ({"temperature": -1}, "temperature", ["-1", "0 to 2"]),
        ({"temperature": 3}, "temperature", ["3"]),
        ({"temperature": "hot"}, "temperature", ['"hot"', "a number"]),
        ({"temperature": True}, "temperature", ["true", "a number"]),
        ({"top_p": 0}, "top_p", ["0"]),
        ({"top_p": 1.5}, "top_p", ["1.5"]),
        ({"top_k": -2}, "top_k", ["-2"]),
        ({"min_p": 2}, "min_p", ["2"]),
        ({"presence_penalty": 2.5}, "presence_penalty", ["2.5", "2"]),
        ({"frequency_penalty": -3}, "frequency_penalty", ["-3"]),
        ({"repetition_penalty": 0}, "repetition_penalty", ["0"]),
        ({"max_tokens": 0}, "max_tokens", ["0", "1"]),
        ({"max_tokens": -1}, "max_tokens", ["-1", "leave it out"]),
        ({"max_tokens": 2**31}, "max_tokens", [str(2**31)]),
        ({"max_tokens": 10**400}, "max_tokens", ["64 bits"]),
        ({"max_tokens": "ten"}, "max_tokens", ['"ten"', "an integer"]),
        ({"max_tokens": 1.5}, "max_tokens", ["1.5", "an integer"]),
        ({"max_completion_tokens": 0}, "max_completion_tokens", ["0"]),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", ["2", "1"]),
        ({"n": 0}, "n", ["n is 0", "1 to 16"]),
        ({"n": 1_000_000}, "n", ["1000000", "16"]),
        ({"seed": -(2**63) - 1}, "seed", ["-9223372036854775809", "-9223372036854775808"]),
        ({"seed": 2**64}, "seed", [str(2**64)]),
        ({"stop": ""}, "stop", ["0 characters"]),
        ({"stop": ["a"] * 17}, "stop", ["17", "16"]),
        ({"stop": "x" * 2000}, "stop", ["2000", "1024"]),
        ({"stop": {}}, "stop", ["an object", "a string or a list"]),
        ({"stop": ["a", 1]}, "stop", ["stop[1] is 1", "a string"]),
        ({"stop": [None]}, "stop", ["stop[0] is null", "a string"]),
        ({"stop": ["a", ""]}, "stop", ["stop[1] has 0 characters"]),
        ({"stop_token_ids": ["a"]}, "stop_token_ids", ['stop_token_ids[0] is "a"', "an integer"]),
        ({"stop_token_ids": [1, True]}, "stop_token_ids", ["stop_token_ids[1] is true"]),
        ({"stop_token_ids": [5, 512]}, "stop_token_ids", ["stop_token_ids[1] is 512", "511"]),
        ({"logprobs": 1}, "logprobs", ["true or false", "top_logprobs says how many"]),
        ({"top_logprobs": 2}, "top_logprobs", ["logprobs"]),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ["21", "20"]),
        ({"logit_bias": {"x": 1}}, "logit_bias", ["'x'"]),
        ({"logit_bias": {"1": 1e9}}, "logit_bias", ["1000000000"]),
        ({"logit_bias": {"1": 101}}, "logit_bias", ["logit_bias[1] is 101", "-100 to 100"]),
        ({"logit_bias": {"1": "a"}}, "logit_bias", ['logit_bias[1] is "a"', "a number"]),
        ({"logit_bias": {"1": None}}, "logit_bias", ["logit_bias[1] is null", "a number"]),
        ({"logit_bias": {"01": 1}}, "logit_bias", ["'01'", "token ids"]),
        ({"logit_bias": {"9999": 1}}, "logit_bias", ["9999", "511"]),
        ({"logit_bias": []}, "logit_bias", ["an object"]),
        ({"stream": "yes"}, "stream", ['"yes"', "true or false"]),
        ({"stream_options": {"include_usage": True}}, "stream_options", ["stream"]),
        ({"cache": "always"}, "cache", ['"always"', "bypass", "refresh"]),
        ({"cache": ["use"]}, "cache", ["list"]),
        ({"priority": "urgent"}, "priority", ['"urgent"', "high"]),
        ({"timeout_ms": 0}, "timeout_ms", ["0"]),
        ({"timeout_ms": 3_600_001}, "timeout_ms", ["3600001", "3600000"]),
        ({"model": 5}, "model", ["5", "a string"]),
        ({"max_token": 5}, "max_token", ["did you mean max_tokens"]),
        ({"temprature": 1}, "temprature", ["temperature"]),
    ],
)
async def test_wrong_field_names_itself_its_value_and_the_limit(
    gateway: Harness, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    raw = json.dumps({"messages": HI, **fields}).encode()
    async with gateway.client() as client:
        reply = await client.post(CHAT, content=raw, headers={"content-type": "application/json"})

    error = check_error(reply, 400, param, None)
    assert error["type"] == "invalid_request_error"
    assert all(word in error["message"] for word in words), error
    assert reply.headers["x-should-retry"] == "false"
    assert gateway.bus.published == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"guided_regex": "a*"}, "guided_regex"),
        ({"use_beam_search": True}, "use_beam_search"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
        ),
    ],
)
async def test_semantic_field_that_is_not_done_is_refused(
    gateway: Harness, fields: dict[str, Any], param: str
) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI, **fields})

    check_error(reply, 400, param, "unsupported_parameter")


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {}, "store": True, "service_tier": "auto", "verbosity": "low"},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"reasoning_effort": "low", "some_future_field": 1, "use_beam_search": False},
        {"temperature": None, "stop": None, "logit_bias": None, "stream": None},
    ],
)
async def test_harmless_field_is_ignored(gateway: Harness, fields: dict[str, Any]) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI, **fields})

    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (TEXT, {}, "prompt", ["missing"]),
        (TEXT, {"prompt": ""}, "prompt", ["empty"]),
        (TEXT, {"prompt": []}, "prompt", ["prompt"]),
        (TEXT, {"prompt": [1, "a"]}, "prompt", ['prompt[1] is "a"', "an integer"]),
        (TEXT, {"prompt": [1.5, 2]}, "prompt", ["prompt[0] is 1.5"]),
        (TEXT, {"prompt": ["a", None]}, "prompt", ["prompt[1] is null", "a string"]),
        (TEXT, {"prompt": [[1], [2, True]]}, "prompt", ["prompt[1][1] is true"]),
        (TEXT, {"prompt": [[1], "a"]}, "prompt", ['prompt[1] is "a"', "a list of token ids"]),
        (TEXT, {"prompt": {}}, "prompt", ["an object", "token ids"]),
        (TEXT, {"prompt": [[]]}, "prompt", ["empty"]),
        (TEXT, {"prompt": [1, 512]}, "prompt", ["prompt[1] is 512", "511"]),
        (TEXT, {"prompt": [[1], [1, 512]]}, "prompt[1]", ["prompt[1][1] is 512", "511"]),
        (TEXT, {"prompt": ["a"] * 2000}, "prompt", ["2000", "1024"]),
        (TEXT, {"prompt": "a", "logprobs": 30}, "logprobs", ["30", "20"]),
        (TEXT, {"prompt": "a", "logprobs": True}, "logprobs", ["an integer", "how many"]),
        ("/generate", {}, "prompt", ["missing"]),
        ("/generate", {"prompt": "a", "maxTokens": 0}, "maxTokens", ["maxTokens is 0"]),
        ("/generate", {"prompt": "a", "maxTokns": 1}, "maxTokns", ["did you mean maxTokens?"]),
        ("/generate", {"prompt": "a", "max_tokns": 1}, "max_tokns", ["did you mean max_tokens?"]),
        ("/generate", {"prompt": "a", "maxTokens": 1, "max_tokens": 2}, "maxTokens", ["1", "2"]),
        ("/generate", {"prompt": "a", "topP": 2}, "topP", ["topP is 2"]),
        ("/generate", {"prompt": "a", "timeoutMs": 0}, "timeoutMs", ["timeoutMs is 0"]),
        ("/generate", {"prompt": ["a"]}, "prompt", ["a list", "a string"]),
        ("/generate/batch", {}, "requests", ["missing"]),
        ("/generate/batch", {"requests": []}, "requests", ["0"]),
        ("/generate/batch", {"requests": [{}] * 1025}, "requests", ["1025", "1024"]),
    ],
)
async def test_wrong_field_on_the_other_routes(
    gateway: Harness, path: str, body: dict[str, Any], param: str, words: list[str]
) -> None:
    async with gateway.client() as client:
        reply = await client.post(path, json=body)

    error = check_error(reply, 400, param, None)
    assert all(word in error["message"] for word in words), error


@pytest.mark.parametrize("field", ["echo", "suffix"])
async def test_completion_feature_that_is_not_done_is_refused(gateway: Harness, field: str) -> None:
    async with gateway.client() as client:
        reply = await client.post(
            TEXT, json={"prompt": "a", field: "x" if field == "suffix" else True}
        )

    check_error(reply, 400, field, "unsupported_parameter")


async def test_best_of_is_refused_unless_it_is_n(gateway: Harness) -> None:
    async with gateway.client() as client:
        refused = await client.post(TEXT, json={"prompt": "a", "best_of": 3})
        taken = await client.post(TEXT, json={"prompt": "a", "best_of": 2, "n": 2})

    check_error(refused, 400, "best_of", "unsupported_parameter")
    assert taken.status_code == 200


async def test_unknown_model_is_404(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"model": "gpt-9", "messages": HI})

    error = check_error(reply, 404, "model", "model_not_found")
    assert "gpt-9" in error["message"]
    assert reply.headers["x-should-retry"] == "false"


async def test_context_length_is_told_with_numbers(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI, "max_tokens": 100})

    error = check_error(reply, 400, "max_tokens", "context_length_exceeded")
    assert "103" in error["message"]
    assert "64" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, {"messages": HI, "max_completion_tokens": 99}, "max_completion_tokens"),
        (CHAT, {"messages": HI, "max_tokens": 99}, "max_tokens"),
        (TEXT, {"prompt": "a", "max_completion_tokens": 99}, "max_completion_tokens"),
        ("/generate", {"prompt": "a", "maxTokens": 99}, "maxTokens"),
        ("/generate", {"prompt": "a", "maxCompletionTokens": 99}, "maxCompletionTokens"),
    ],
)
async def test_context_length_names_the_field_as_it_was_sent(
    gateway: Harness, path: str, body: dict[str, Any], name: str
) -> None:
    async with gateway.client() as client:
        reply = await client.post(path, json=body)

    error = check_error(reply, 400, name, "context_length_exceeded")
    assert f"{name} is 99" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 90}]}, "messages"),
        (TEXT, {"prompt": "x" * 90}, "prompt"),
        (TEXT, {"prompt": ["a", "x" * 90]}, "prompt[1]"),
        ("/generate", {"prompt": "x" * 90}, "prompt"),
    ],
)
async def test_long_prompt_is_named_as_it_was_sent(
    gateway: Harness, path: str, body: dict[str, Any], param: str
) -> None:
    async with gateway.client() as client:
        reply = await client.post(path, json=body)

    error = check_error(reply, 400, param, "context_length_exceeded")
    assert error["message"].startswith(f"{param} has 9")


async def test_body_over_the_limit_is_413(gateway: Harness) -> Any:
    import dataclasses

    gateway.edge = dataclasses.replace(gateway.edge, max_body_bytes=100)

    async def parts() -> Any:
        yield b'{"x": "'
        yield b"a" * 200

    headers = {"content-type": "application/json"}
    async with gateway.client() as client:
        declared = await client.post(CHAT, content=b" " * 101, headers=headers)
        streamed = await client.post(CHAT, content=parts(), headers=headers)

    for reply in (declared, streamed):
        error = check_error(reply, 413, None, "payload_too_large")
        assert "100" in error["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_wrong_content_type_is_415(gateway: Harness, content_type: str) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, content=b"{}", headers={"content-type": content_type})

    check_error(reply, 415, None, "unsupported_media_type")


async def test_unknown_path_is_404(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.get("/v2/nothing")

    error = check_error(reply, 404, None, "unknown_url")
    assert "GET /v2/nothing" in error["message"]


async def test_wrong_verb_is_405(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.get(CHAT)

    error = check_error(reply, 405, None, "method_not_allowed")
    assert error["message"] == f"GET is not allowed on {CHAT}, only POST"
    assert reply.headers["allow"] == "POST"


async def test_no_scheduler_is_503_with_retry_after(gateway: Harness) -> None:
    gateway.directory.on_detached("tiny")
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI})

    check_error(reply, 503, "model", "unavailable")
    assert reply.headers["retry-after"] == "2"


async def test_deadline_is_504(gateway: Harness) -> None:
    gateway.silence()
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI, "timeout_ms": 20})

    error = check_error(reply, 504, None, "deadline_exceeded")
    assert error["type"] == "timeout_error"


async def test_defect_is_500_without_details(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(whole: Any, parsed: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("millrace.gateway.http.openai_chat.chat_reply", break_down)
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI})

    error = check_error(reply, 500, None, "internal")
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"] in error["message"]
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_request_id_of_the_client_is_not_taken(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI}, headers={"x-request-id": "a" * 32})

    assert reply.headers["x-request-id"] != "a" * 32


async def test_trace_of_the_caller_goes_on(gateway: Harness) -> None:
    parent = "00-11111111111111111111111111111111-2222222222222222-01"
    async with gateway.client() as client:
        good = await client.post(CHAT, json={"messages": HI}, headers={"traceparent": parent})
        bad = await client.post(CHAT, json={"messages": HI}, headers={"traceparent": "00-zz"})

    assert good.headers["traceresponse"].split("-")[1] == "1" * 32
    assert len(bad.headers["traceresponse"].split("-")[1]) == 32
