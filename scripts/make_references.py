"""Writes what transformers answers to the prompts of the equality tests.

After changing prompts or default model: `.venv/bin/python scripts/make_references.py`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from millrace.hub.catalog import resolve_model

ROOT = Path(__file__).parents[1]
E2E = ROOT / "tests" / "e2e"


def main() -> None:
    """Writes tests/e2e/data/references.json."""
    prompts = _prompts_module()
    entry = resolve_model("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(entry.path)
    model: Any = AutoModelForCausalLM.from_pretrained(entry.path, dtype=torch.float32)
    model.eval()
    known = _known_outputs(entry.revision)
    references = []
    for prompt in prompts.load_prompts():
        ids = encode(tokenizer, prompt)
        key = (tuple(ids), prompt.max_tokens)
        output = known.get(key) or generate(model, ids, prompt.max_tokens)
        print(f"{prompt.name}: {len(ids)} tokens, {tokenizer.decode(output)[:60]!r}", flush=True)
        references.append(
            {
                "name": prompt.name,
                "max_tokens": prompt.max_tokens,
                "prompt_token_ids": ids,
                "output_token_ids": output,
            }
        )
    header = {"model": entry.name, "revision": entry.revision, "dtype": "float32"}
    document = {**header, "transformers": version("transformers"), "references": references}
    lines = json.dumps(document).replace('{"name"', '\n{"name"')
    (E2E / "data" / "references.json").write_text(lines + "\n", "utf-8")


def _known_outputs(revision: str) -> dict[tuple[tuple[int, ...], int], list[int]]:
    """Outputs of an earlier run with the same weights and the same transformers."""
    path = E2E / "data" / "references.json"
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if (document["revision"], document["transformers"]) != (revision, version("transformers")):
        return {}
    return {
        (tuple(entry["prompt_token_ids"]), entry["max_tokens"]): entry["output_token_ids"]
        for entry in document["references"]
    }


def encode(tokenizer: Any, prompt: Any) -> list[int]:
    """Prompt to token ids, special strings in user text as plain text."""
    if not prompt.messages:
        return list(tokenizer(prompt.text, split_special_tokens=True)["input_ids"])
    if prompt.compare_encoding:
        rendered = tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(rendered["input_ids"])
    return _encode_sections(tokenizer, prompt)


def _encode_sections(tokenizer: Any, prompt: Any) -> list[int]:
    """The template around a mark in place of the content, and the content as plain text."""
    mark = "\ue000"
    messages = [{**message, "content": mark} for message in prompt.messages]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    sections = text.split(mark)
    contents = [message["content"] for message in prompt.messages]
    # A section that ends in a line break and content that begins without one are separate words.
    ids: list[int] = []
    for section, content in zip(sections, [*contents[-len(sections) + 1 :], ""], strict=True):
        ids += tokenizer(section)["input_ids"]
        ids += tokenizer(content, split_special_tokens=True)["input_ids"]
    return ids


def generate(model: Any, ids: list[int], max_tokens: int) -> list[int]:
    """Greedy output of transformers."""
    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_tokens,
        do_sample=False,
    )
    return list(map(int, output[0, len(ids) :]))


def _prompts_module() -> Any:
    spec = importlib.util.spec_from_file_location("prompts", E2E / "prompts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prompts"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
