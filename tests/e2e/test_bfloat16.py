"""Greedy text in bfloat16 follows the float32 references until rounding decides between tokens.

Where an answer first differs, the float32 gap between the reference's token and ours must be at
most 4 times the largest error that bfloat16 causes in transformers' own logits: |bfloat16 -
float32| over the whole vocabulary at that position, after the prompt and the shared tokens. That
gap is never smaller than the gap of float32's top two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

from millrace.testing.stack import Stack, start_stack
from tests.e2e.ask_prompts import ask_staggered
from tests.e2e.client import Client
from tests.e2e.conftest import CACHE, DEFAULT_MODEL
from tests.e2e.prompts import Reference, load_prompts, load_references

PROMPTS = load_prompts()
REFERENCES = load_references()
MAX_ERRORS = 4.0

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@dataclass(frozen=True)
class Divergence:
    """The first position at which an answer differs; logits are float32's."""

    name: str
    position: int
    gap: float
    top_two_gap: float
    largest_error: float

    @property
    def errors(self) -> float:
        """The gap, in largest errors."""
        return self.gap / self.largest_error


@pytest.fixture(scope="module")
def bfloat16_stack(models: Path) -> Iterator[Stack]:
    settings = {"MILLRACE_WORKER_DTYPE": "bfloat16"}
    with start_stack(CACHE / "bfloat16", models, settings=settings) as started:
        yield started


@pytest.fixture(scope="module")
def logits(models: Path) -> Any:
    """(dtype, token ids) to transformers' logits of the next token, float32 (vocabulary,)."""
    from transformers import AutoModelForCausalLM

    loaded = {
        dtype: AutoModelForCausalLM.from_pretrained(models / DEFAULT_MODEL, dtype=dtype).eval()
        for dtype in (torch.float32, torch.bfloat16)
    }

    def next_logits(dtype: torch.dtype, ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            output: torch.Tensor = loaded[dtype](torch.tensor([ids]), logits_to_keep=1).logits
        return output[0, -1].float()

    return next_logits


async def test_bfloat16_differs_from_float32_only_where_rounding_decides(
    bfloat16_stack: Stack, logits: Any
) -> None:
    answers = await _ask_all(bfloat16_stack)
    divergences = []
    num_shared = 0
    for prompt, tokens in zip(PROMPTS, answers, strict=True):
        reference = REFERENCES[prompt.name]
        shared = _num_shared(tokens, reference)
        num_shared += shared
        if tokens != reference.output_token_ids:
            divergences.append(_divergence(logits, reference, tokens, shared))
    _report(divergences, num_shared)
    assert all(found.top_two_gap <= found.gap for found in divergences)
    assert [found for found in divergences if found.errors > MAX_ERRORS] == []


async def _ask_all(stack: Stack) -> list[list[int]]:
    """Every prompt's tokens; all prompts are under way at once."""
    client = Client(stack)
    answers = await ask_staggered(client, PROMPTS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.num_prompt_tokens == len(REFERENCES[prompt.name].prompt_token_ids)
    assert await client.num_response_cache_hits() == 0
    await client.close()
    return [answer.tokens for answer in answers]


def _num_shared(tokens: list[int], reference: Reference) -> int:
    pairs = zip(tokens, reference.output_token_ids, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _divergence(logits: Any, reference: Reference, tokens: list[int], shared: int) -> Divergence:
    # Both end with the end-of-sequence token or at max_tokens, so neither is the other's beginning.
    assert shared < min(len(tokens), len(reference.output_token_ids)), reference.name
    ids = reference.prompt_token_ids + reference.output_token_ids[:shared]
    exact, rounded = logits(torch.float32, ids), logits(torch.bfloat16, ids)
    top_two = exact.topk(2).values
    return Divergence(
        name=reference.name,
        position=shared,
        gap=float(exact[reference.output_token_ids[shared]] - exact[tokens[shared]]),
        top_two_gap=float(top_two[0] - top_two[1]),
        largest_error=float((rounded - exact).abs().max()),
    )


def _report(divergences: list[Divergence], num_shared: int) -> None:
    num_tokens = sum(len(REFERENCES[prompt.name].output_token_ids) for prompt in PROMPTS)
    num_equal = len(PROMPTS) - len(divergences)
    print(
        f"\nbfloat16: {num_equal} of {len(PROMPTS)} answers equal in whole, "
        f"{num_shared / num_tokens:.1%} of {num_tokens} tokens before the first difference"
    )
    for found in sorted(divergences, key=lambda found: -found.errors):
        print(
            f"  {found.name}: token {found.position}, gap {found.gap:.4f} (top two "
            f"{found.top_two_gap:.4f}), {found.errors:.2f} of the largest error "
            f"{found.largest_error:.4f}"
        )
