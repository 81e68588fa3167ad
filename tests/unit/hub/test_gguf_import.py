"""GGUF import: weights, settings and tokenizer of a synthetic file."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from millrace.core.errors import UnsupportedModel
from millrace.hub.bfloat16 import to_bfloat16_bits
from millrace.hub.gguf_import import convert_gguf
from millrace.hub.gguf_weights import unpermute_rotary
from tests.unit.hub.gguf_document import LIST, TEXT, tiny_document


def test_weights_come_back_in_checkpoint_order(
    make_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    source = make_gguf()

    convert_gguf(source.path, tmp_path)

    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == source.tensors.keys()
    for name, values in source.tensors.items():
        if ".gate_proj." in name:
            error = (found[name].float() - torch.from_numpy(values)).abs().max()
            assert 0 < error < 0.05
        else:
            assert torch.equal(found[name], torch.from_numpy(values).to(torch.bfloat16)), name


def test_config_describes_the_file(make_gguf: Callable[..., Any], tmp_path: Path) -> None:
    license = convert_gguf(make_gguf().path, tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())
    assert license == "apache-2.0"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == 261
    assert config["num_key_value_heads"] == 2
    assert config["head_dim"] == 16
    assert config["rms_norm_eps"] == 1e-5
    assert config["max_position_embeddings"] == 512
    assert config["tie_word_embeddings"] is True
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]


@pytest.mark.parametrize(
    "text",
    [
        "hello there",
        "in 2024, 3.14159 or 12345",
        "中文测试，你好！",
        "👩‍👩‍👧‍👦 ok",
        "def f(x):\n    return x**2\n\n\n\tend",
        "  1 2  3   ",
        "a\u00a0b\r\nc½²",
    ],
)
def test_tokenizer_gives_text_back(
    make_gguf: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    convert_gguf(make_gguf().path, tmp_path)

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_smollm_tokenizer_splits_digits_before_spaces_merge(
    make_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    convert_gguf(make_gguf().path, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    # GPT-2's rules alone would give the second space to the digit: "Ġ", "Ġ", "3".
    assert tokenizer.encode("a  3").tokens == ["a", "ĠĠ", "3"]
    assert tokenizer.encode("he").tokens == ["he"]


def test_special_tokens_are_single_ids(make_gguf: Callable[..., Any], tmp_path: Path) -> None:
    convert_gguf(make_gguf().path, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    ids = tokenizer.encode("<|im_start|>a<|im_end|>").ids

    assert (ids[0], ids[-1], len(ids)) == (1, 2, 3)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|im_end|>"
    assert config["chat_template"] == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"pre": "unheard-of"}, "pre-tokenizer 'unheard-of'"),
        ({"expert_count": 8}, "mixture-of-experts"),
    ],
)
def test_what_cannot_be_exact_is_refused(
    make_gguf: Callable[..., Any], tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    source = make_gguf(**settings)

    with pytest.raises(UnsupportedModel, match=reason):
        convert_gguf(source.path, tmp_path)


def test_what_is_done_is_told_from_the_beginning(
    make_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    told = io.StringIO()

    convert_gguf(make_gguf().path, tmp_path, stream=told)

    lines = told.getvalue().splitlines()
    assert lines[0] == "reading the header of llama-smollm.gguf"
    assert lines[1] == "llama, 261 tokens, 11 tensors in 172.4 kB"
    assert lines[-1].startswith("converting weights: done")


def test_refusal_does_not_wait_for_the_vocabulary(tmp_path: Path) -> None:
    """Whose tokens cannot even be decoded here, and for which no library is loaded."""
    document = tiny_document("gemma3")
    document.keys["tokenizer.ggml.tokens"] = (LIST, (TEXT, [b"\xff"]))
    path = document.write(tmp_path / "gemma.gguf")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from millrace.core.errors import UnsupportedModel\n"
        "from millrace.hub.gguf_import import convert_gguf\n"
        "try:\n    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except UnsupportedModel as error:\n    print(error.message)\n"
        "assert not {'gguf', 'numpy', 'torch', 'transformers'} & set(sys.modules)\n"
    )

    result = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path], capture_output=True, text=True, check=False
    )

    assert result.stderr == ""
    assert result.stdout.startswith(f"{path}: GGUF architecture 'gemma3' (general.architecture)")


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model at all, but long enough")

    with pytest.raises(UnsupportedModel, match="bad.gguf: not a GGUF file: it begins with"):
        convert_gguf(tmp_path / "bad.gguf", tmp_path)


def test_unpermute_puts_rotary_halves_one_after_the_other() -> None:
    # Two heads of four rows, interleaved as (x0, y0, x1, y1).
    values = np.array([[0], [2], [1], [3], [4], [6], [5], [7]], dtype=np.float32)

    assert unpermute_rotary(values, 2).ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_bfloat16_rounds_as_torch() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, size=200_000, dtype=np.uint64).astype(np.uint32)
    halfway = (np.arange(0x3F00, 0x4000, dtype=np.uint32) << 16) | 0x8000
    edges = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1], dtype=np.uint32)
    values = np.concatenate([bits, halfway, edges]).view(np.float32)
    values = values[~np.isnan(values)]

    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()

    assert np.array_equal(to_bfloat16_bits(values), expected)


def test_bfloat16_keeps_nan() -> None:
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)

    bits = to_bfloat16_bits(nans)

    assert torch.from_numpy(bits).view(torch.bfloat16).isnan().all()
