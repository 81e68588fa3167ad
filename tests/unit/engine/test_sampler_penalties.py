"""Penalties, logit bias and pending stop ids."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from millrace.core.sampling import SamplingSpec
from millrace.engine.sampler import Sampler, SampleRow
from millrace.engine.sampler.penalties import apply_bias, apply_penalties


def penalised(
    logits: list[float], token_ids: list[int], num_prompt_tokens: int, **penalties: Any
) -> list[float]:
    array = np.array(logits, dtype=np.float32)
    apply_penalties(array, SamplingSpec(**penalties), token_ids, num_prompt_tokens)
    return [float(x) for x in array]


def greedy_token(logits: list[float], row: SampleRow) -> int:
    return Sampler(len(logits)).sample(torch.tensor([logits]), [row])[0].token_id


def test_repetition_penalty_counts_prompt_and_output_once() -> None:
    values = penalised([4.0, -4.0, 4.0, -4.0, 0.0], [0, 0, 1, 4], 2, repetition_penalty=2.0)

    assert values == [2.0, -8.0, 4.0, -4.0, 0.0]


def test_presence_penalty_counts_output_only() -> None:
    assert penalised([1.0, 1.0, 1.0], [0, 1, 1], 1, presence_penalty=0.5) == [1.0, 0.5, 1.0]


def test_frequency_penalty_counts_each_time() -> None:
    assert penalised([1.0, 1.0, 1.0], [0, 1, 1, 2], 1, frequency_penalty=0.25) == [1.0, 0.5, 0.75]


def test_negative_penalty_raises_logits() -> None:
    values = penalised([0.0, 0.0], [1, 1], 0, frequency_penalty=-1.0, presence_penalty=-0.5)

    assert values == [0.0, 2.5]


def test_penalties_combine_in_order() -> None:
    values = penalised(
        [6.0], [0, 0], 1, repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25
    )

    assert values == [6.0 / 2.0 - 0.5 - 0.25]


def test_ids_outside_the_vocabulary_are_passed_over() -> None:
    values = penalised([1.0, 2.0], [-1, 2, 10**6], 0, repetition_penalty=2.0, presence_penalty=1.0)
    array = np.zeros(2, dtype=np.float32)
    apply_bias(array, ((-1, 5.0), (2, 5.0), (1, 3.0)))

    assert values == [1.0, 2.0]
    assert array.tolist() == [0.0, 3.0]


def test_repetition_penalty_equals_transformers() -> None:
    logits_process = pytest.importorskip("transformers.generation.logits_process")
    torch.manual_seed(4)
    logits = torch.randn(1, 300) * 5
    ids = torch.randint(0, 300, (1, 80))

    expected = logits_process.RepetitionPenaltyLogitsProcessor(1.17)(ids, logits.clone())

    values = penalised(logits[0].tolist(), ids[0].tolist(), 10, repetition_penalty=1.17)
    assert values == expected[0].tolist()


@pytest.mark.parametrize(("bias", "expected"), [(100.0, 2), (-100.0, 0)])
def test_extreme_bias_forces_or_bans_a_token(bias: float, expected: int) -> None:
    for temperature in (0.0, 1.0):
        spec = SamplingSpec(temperature=temperature, top_p=0.9, logit_bias=((2, bias),))
        row = SampleRow(spec, [0], 1, 0, ())
        assert greedy_token([9.0, 0.0, 11.0], row) == expected


def test_bias_comes_after_penalties() -> None:
    """(4 / 2) + 3 beats 4.5; (4 + 3) / 2 would not."""
    spec = SamplingSpec(temperature=0.0, repetition_penalty=2.0, logit_bias=((0, 3.0),))

    assert greedy_token([4.0, 4.5], SampleRow(spec, [0], 1, 0, ())) == 0


def test_vanishing_repetition_penalty_does_not_fail() -> None:
    spec = SamplingSpec(repetition_penalty=1e-320)

    assert greedy_token([1.0, 5.0, -1.0], SampleRow(spec, [0], 1, 0, ())) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_ids_wait_for_min_tokens(temperature: float) -> None:
    logits = [0.0, 50.0, 50.0, 1.0]
    spec = SamplingSpec(temperature=temperature, min_tokens=2, logit_bias=((1, 100.0),))

    tokens = [
        greedy_token(logits, SampleRow(spec, [3] * (5 + num_output), 5, 0, (1, 2)))
        for num_output in range(4)
    ]

    assert not {1, 2} & set(tokens[:2])
    assert tokens[2:] == [1, 1]


def test_min_tokens_without_stop_ids_changes_nothing() -> None:
    spec = SamplingSpec(temperature=0.0, min_tokens=9)

    assert greedy_token([0.0, math.pi], SampleRow(spec, [0], 1, 0, ())) == 1
