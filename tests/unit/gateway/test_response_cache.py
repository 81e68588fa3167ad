"""What the cache key covers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from millrace.core.chat import ChatMessage
from millrace.core.model import ModelInfo
from millrace.core.request import Priority
from millrace.core.sampling import SamplingParams
from millrace.gateway.generation import GenerationRequest
from millrace.gateway.response_cache import cache_key

MODEL = ModelInfo(name="m", revision="r1", dtype="float32", max_model_len=64, vocab_size=100)


def request(**fields: Any) -> GenerationRequest:
    sampling = SamplingParams(**{"temperature": 0.0, **fields.pop("sampling", {})})
    if not fields.keys() & {"token_ids", "messages"}:
        fields.setdefault("text", "a")
    return GenerationRequest(sampling=sampling, **fields)


def test_key_has_32_bytes() -> None:
    assert len(cache_key(request(), MODEL)) == 32


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "b"},
        {"token_ids": (97,)},
        {"messages": (ChatMessage("user", "a"),)},
        {"tenant": "t"},
        {"sampling": {"max_tokens": 5}},
        {"sampling": {"stop": ("x",)}},
        {"sampling": {"temperature": 1.0, "seed": 1}},
        {"sampling": {"logit_bias": ((1, 1.0),)}},
        {"sampling": {"num_choices": 2}},
        {"sampling": {"ignore_eos": True}},
    ],
)
def test_key_differs_where_the_answer_may(fields: dict[str, Any]) -> None:
    assert cache_key(request(**fields), MODEL) != cache_key(request(), MODEL)


@pytest.mark.parametrize("change", [{"revision": "r2"}, {"dtype": "bfloat16"}])
def test_key_differs_between_weights(change: dict[str, Any]) -> None:
    other = dataclasses.replace(MODEL, **change)

    assert cache_key(request(), other) != cache_key(request(), MODEL)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": Priority.HIGH},
        {"timeout_ms": 5},
        {"model": "alias"},
        {"is_streamed": True},
        {"sampling": {"seed": 3}},
    ],
)
def test_key_is_the_same_where_the_answer_is(fields: dict[str, Any]) -> None:
    assert cache_key(request(**fields), MODEL) == cache_key(request(), MODEL)


def test_message_boundaries_are_part_of_the_key() -> None:
    one = request(messages=(ChatMessage("user", "ab"), ChatMessage("user", "c")))
    two = request(messages=(ChatMessage("user", "a"), ChatMessage("user", "bc")))

    assert cache_key(one, MODEL) != cache_key(two, MODEL)
