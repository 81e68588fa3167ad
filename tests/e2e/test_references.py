"""The stored references are what transformers answers now: drawn prompts, computed afresh."""

from __future__ import annotations

import random
import secrets
from pathlib import Path
from typing import Any

import pytest
from scripts.make_references import encode, generate

from tests.e2e.conftest import DEFAULT_MODEL
from tests.e2e.prompts import Prompt, load_prompts, load_references

NUM_DRAWN = 3
PROMPTS = load_prompts()
REFERENCES = load_references()

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def transformers_model(models: Path) -> tuple[Any, Any]:
    """Tokenizer and float32 model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = models / DEFAULT_MODEL
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(path), model.eval()


def test_a_short_reference_is_what_transformers_answers(
    transformers_model: tuple[Any, Any],
) -> None:
    _assert_current(transformers_model, _prompt("capital"))


@pytest.mark.slow
def test_drawn_references_are_what_transformers_answers(
    transformers_model: tuple[Any, Any],
) -> None:
    seed = secrets.randbelow(1 << 32)
    drawn = random.Random(seed).sample(PROMPTS, NUM_DRAWN)
    print(f"\nseed {seed}: {', '.join(prompt.name for prompt in drawn)}")
    for prompt in drawn:
        _assert_current(transformers_model, prompt)


def _prompt(name: str) -> Prompt:
    return next(prompt for prompt in PROMPTS if prompt.name == name)


def _assert_current(transformers_model: tuple[Any, Any], prompt: Prompt) -> None:
    tokenizer, model = transformers_model
    reference = REFERENCES[prompt.name]
    ids = encode(tokenizer, prompt)
    assert ids == reference.prompt_token_ids, prompt.name
    output = generate(model, ids, prompt.max_tokens)
    assert output == reference.output_token_ids, prompt.name
