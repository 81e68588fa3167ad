"""Log-probabilities: of the model's own distribution, whatever the sampling parameters."""

from __future__ import annotations

import pytest
import torch

from millrace.core.sampling import SamplingSpec
from millrace.engine.sampler import Sampled, Sampler, SampleRow


def sample_one(logits: torch.Tensor, spec: SamplingSpec) -> Sampled:
    row = SampleRow(spec, [1, 2, 3], 1, 0, (5,))
    return Sampler(len(logits)).sample(logits[None], [row])[0]


def random_logits(vocab_size: int = 20_000) -> torch.Tensor:
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(8)) * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "spec",
    [
        SamplingSpec(temperature=0.0, top_logprobs=20),
        SamplingSpec(temperature=1.9, top_logprobs=20),
        SamplingSpec(temperature=0.3, top_p=0.5, top_k=4, top_logprobs=20),
        SamplingSpec(
            repetition_penalty=1.9,
            logit_bias=((7, 100.0),),
            min_tokens=9,
            top_logprobs=20,
        ),
    ],
    ids=["greedy", "hot", "truncated", "edited"],
)
def test_logprobs_are_log_softmax_of_raw_logits(spec: SamplingSpec, dtype: torch.dtype) -> None:
    logits = random_logits().to(dtype)
    expected = logits.double().log_softmax(-1)

    sampled = sample_one(logits, spec)

    assert sampled.logprobs is not None
    assert sampled.logprobs.chosen == pytest.approx(float(expected[sampled.token_id]), abs=1e-9)
    values = [value for _, value in sampled.logprobs.top]
    assert values == pytest.approx(expected.topk(20).values.tolist(), abs=1e-9)
    for token_id, value in sampled.logprobs.top:
        assert value == pytest.approx(float(expected[token_id]), abs=1e-9)


def test_logprobs_are_absent_unless_asked_for() -> None:
    assert sample_one(random_logits(), SamplingSpec()).logprobs is None
    assert sample_one(random_logits(), SamplingSpec(temperature=0.0)).logprobs is None


def test_zero_top_logprobs_gives_the_chosen_alone() -> None:
    sampled = sample_one(random_logits(), SamplingSpec(top_logprobs=0))

    assert sampled.logprobs is not None
    assert sampled.logprobs.top == ()
    assert sampled.logprobs.chosen < 0


def test_top_ties_are_in_order_of_id() -> None:
    logits = torch.zeros(5000)
    logits[[4000, 30, 2000]] = 1.0

    sampled = sample_one(logits, SamplingSpec(temperature=0.0, top_logprobs=5))

    assert sampled.logprobs is not None
    assert [token_id for token_id, _ in sampled.logprobs.top] == [30, 2000, 4000, 0, 1]


def test_more_top_logprobs_than_tokens_gives_all() -> None:
    sampled = sample_one(torch.arange(6.0), SamplingSpec(temperature=0.0, top_logprobs=20))

    assert sampled.logprobs is not None
    assert [token_id for token_id, _ in sampled.logprobs.top] == [5, 4, 3, 2, 1, 0]


def test_asking_for_logprobs_changes_no_token() -> None:
    logits = random_logits(500)
    for seed in range(30):
        with_logprobs = sample_one(logits, SamplingSpec(seed=seed, top_logprobs=3))
        assert sample_one(logits, SamplingSpec(seed=seed)).token_id == with_logprobs.token_id
