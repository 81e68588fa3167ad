"""Embedding and head of tied models, stored in every way, are those that transformers takes."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.engine.models.checkpoint_check import check_checkpoint
from tests.unit.engine.conftest import BACKENDS
from tests.unit.engine.damages import Tensors

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
WAYS = ("one", "copy", "head only", "other head", "head off by one number")


def stored(way: str):
    def change(tensors: Tensors) -> None:
        embedding = tensors[EMBEDDING]
        head = embedding.clone()
        if way == "head only":
            del tensors[EMBEDDING]
        if way == "other head":
            head = torch.randn(head.shape, generator=torch.Generator().manual_seed(4))
        if way == "head off by one number":
            head[5, 7] += 1000.0
        if way != "one":
            tensors[HEAD] = head

    return change


def expected(folder, prompts, num_tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [
            model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("route", ["native", "generic"])
def test_tokens_are_those_of_transformers_however_it_is_stored(folder_of, prompt, way, route):
    folder = folder_of("llama", stored(way))
    prompts = [prompt(length) for length in (3, 9, 20)]
    is_untied = way in ("other head", "head off by one number")

    assert check_checkpoint(folder) == "native"
    for backend in BACKENDS:
        config = EngineConfig(
            folder, "x", dtype="float32", device="cpu", backend=backend, route=route, num_threads=1
        )
        for _ in range(2):
            told: list[str] = []
            engine = create_engine(config, told.append)
            outputs = LocalGenerator(engine).generate([LocalRequest(p, 12) for p in prompts])

            assert [output.token_ids for output in outputs] == expected(folder, prompts, 12)
            notes = [text for text in told if "config.json ties the head" in text]
            assert len(notes) == is_untied, told
            assert engine.info.num_parameters == num_numbers(folder, way)


def num_numbers(folder, way):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return sum(each.numel() for each in model.parameters())


def test_untied_model_does_not_take_its_embedding_for_a_head(folder_of):
    folder = folder_of("llama", stored("copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))

    for backend in BACKENDS:
        engine = create_engine(
            EngineConfig(folder, "x", dtype="float32", device="cpu", backend=backend, num_threads=1)
        )
        assert engine.info.num_parameters == num_numbers(folder, "copy")
