"""Sampling parameters are checked once, with field, value and limit in the message."""

from __future__ import annotations

from typing import Any

import pytest

from millrace.core.errors import InvalidRequest
from millrace.core.model import model_slug
from millrace.core.sampling import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", 3.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("max_tokens", 0),
        ("max_tokens", 2**31),
        ("min_tokens", -1),
        ("seed", -(2**63) - 1),
        ("seed", 2**64),
        ("seed", 10**400),
        ("max_tokens", 10**400),
        ("top_logprobs", 21),
        ("num_choices", 0),
        ("num_choices", 17),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", tuple((token_id, 0.0) for token_id in range(1025))),
        ("stop", ("",)),
        ("stop", ("x" * 1025,)),
        ("stop", ("x",) * 17),
        ("stop_token_ids", tuple(range(65))),
    ],
)
def test_value_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field


def test_whole_limits_are_written_in_full() -> None:
    with pytest.raises(InvalidRequest, match="max_tokens is 0; allowed is 1 to 2147483647"):
        SamplingParams(max_tokens=0)


def test_min_tokens_over_max_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens 5 is over max_tokens 4"):
        SamplingParams(max_tokens=4, min_tokens=5)


@pytest.mark.parametrize(
    ("params", "is_deterministic"),
    [
        (SamplingParams(), False),
        (SamplingParams(temperature=0.0), True),
        (SamplingParams(seed=1), True),
    ],
)
def test_determinism_needs_greed_or_a_seed(params: SamplingParams, is_deterministic: bool) -> None:
    assert params.is_deterministic is is_deterministic


def test_spec_carries_every_value_and_the_seed_in_force() -> None:
    params = SamplingParams(temperature=0.5, top_k=3, logit_bias=((1, 2.0),), min_tokens=2)
    spec = params.spec(seed=9)
    assert (spec.temperature, spec.top_k, spec.logit_bias) == (0.5, 3, ((1, 2.0),))
    assert (spec.min_tokens, spec.seed) == (2, 9)


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M-Instruct", "a.b*c>d e", "模型", "m"])
def test_model_slug_fits_into_a_subject(name: str) -> None:
    slug = model_slug(name)
    assert len(slug) <= 29
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert slug != model_slug(name + "x")
