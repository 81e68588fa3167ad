"""Which folders are refused by their files' names and headers, before a weight is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from millrace.core.errors import UnsupportedModel
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.engine.models.checkpoint_check import check_checkpoint
from millrace.engine.models.generic_tensors import check_generic_headers, parse_config
from millrace.engine.tensor_headers import tensor_headers
from tests.unit.engine.damages import Tensors, changed_headers, put

DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


def each_projection(change: Callable[[str, torch.Tensor], Tensors]) -> Callable[[Tensors], None]:
    """Puts what a quantizer stores in the place of every projection."""

    def apply(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            tensors.update(change(name.removesuffix(".weight"), tensors.pop(name)))

    return apply


def packed(prefix: str, weight: torch.Tensor) -> Tensors:
    rows = len(weight)
    return {
        f"{prefix}.qweight": torch.zeros(rows, 8, dtype=torch.int32),
        f"{prefix}.qzeros": torch.zeros(rows, dtype=torch.int32),
        f"{prefix}.scales": torch.zeros(rows, dtype=torch.float16),
    }


def gptq(prefix: str, weight: torch.Tensor) -> Tensors:
    return {**packed(prefix, weight), f"{prefix}.g_idx": torch.zeros(4, dtype=torch.int32)}


def cast(dtype: torch.dtype, *beside: str) -> Callable[[str, torch.Tensor], Tensors]:
    def change(prefix: str, weight: torch.Tensor) -> Tensors:
        scales = {f"{prefix}.{name}": torch.ones(1) for name in beside}
        return {f"{prefix}.weight": weight.to(dtype), **scales}

    return change


def lora(tensors: Tensors) -> None:
    tensors.clear()
    tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"] = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("change", "files", "reason"),
    [
        (each_projection(gptq), {}, "quantized by gptq"),
        (each_projection(packed), {"quantize_config__json": "{}"}, "quantized by gptq"),
        (each_projection(packed), {"quant_config__json": "{}"}, "quantized by awq"),
        (each_projection(packed), {}, "quantized by gptq or awq"),
        (each_projection(cast(torch.float8_e4m3fn, "weight_scale")), {}, "quantized by fp8"),
        (each_projection(cast(torch.float8_e4m3fn, "weight_scale_inv")), {}, "quantized by fp8"),
        (each_projection(cast(torch.float8_e5m2)), {}, "quantized by fp8"),
        (each_projection(cast(torch.int8)), {}, "quantized by int8"),
        (each_projection(cast(torch.int8, "SCB")), {}, "quantized by bitsandbytes"),
        (each_projection(cast(torch.uint8, "weight.absmax")), {}, "quantized by bitsandbytes"),
        (each_projection(cast(torch.uint32, "scales", "biases")), {}, "quantized by mlx"),
        (each_projection(cast(torch.int32, "weight_packed")), {}, "by compressed-tensors"),
        (lora, {}, "is an adapter's .LoRA.: merge it into its base model first"),
        (dict.clear, {"adapter_config__json": "{}"}, "adapter_config.json is an adapter's"),
        (len, {"adapter_config__json": "{}"}, "merge it into its base model first, or take it"),
        (len, {"adapter_model__bin": ""}, "adapter_model.bin is an adapter's"),
        (dict.clear, {}, "no .*safetensors file"),
    ],
)
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_weights_that_are_not_plain_are_refused_by_name(folder_of, name, change, files, reason):
    folder = folder_of(name, change, **files)

    with pytest.raises(UnsupportedModel, match=reason):
        check_checkpoint(folder)
    with pytest.raises(UnsupportedModel, match=reason):
        create_engine(EngineConfig(folder, "x", device="cpu", num_threads=1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop(DOWN), f"lacks the tensor '{DOWN}'"),
        (lambda tensors: tensors.pop("model.embed_tokens.weight"), "lacks the tensor"),
        (put("model.layers.0.mlp.down_proj.bias", 64), "has the tensor .*down_proj.bias"),
        (put("model.layers.3.input_layernorm.weight", 64), "has the tensor .*layers.3"),
        (put("score.weight", 2, 64), "has the tensor 'score.weight'"),
        (put(NORM, 60), r"shape \[60\]; config.json says \[64\]"),
        (put(DOWN, 64, 80), r"shape \[64, 80\]; config.json says \[64, 96\]"),
        (put("model.embed_tokens.weight", 127, 64), r"shape \[127, 64\]"),
        (put(NORM, 64, dtype=torch.int64), "quantized by I64"),
        (put("model.norm.bias", 64, dtype=torch.uint8), "has the tensor 'model.norm.bias'"),
        (put("layers.1.mlp.down_proj.weight", 64, 96), "under two names"),
        (put("model.model.layers.1.mlp.down_proj.weight", 64, 96), "under two names"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(folder_of, change, reason):
    folder = folder_of("phi3", change)

    with pytest.raises(UnsupportedModel, match=reason):
        check_checkpoint(folder)
    with pytest.raises(UnsupportedModel, match=reason):
        create_engine(EngineConfig(folder, "x", device="cpu", num_threads=1))


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop(EXPERT), "layer's experts"),
        (put(EXPERT, 90, 64), "layer's experts"),
        (put(EXPERT.replace("experts.2", "experts.4"), 96, 64), "layer's experts"),
        (put("model.layers.1.mlp.experts.down_proj", 4, 64, 96), "layer's experts"),
    ],
)
def test_experts_that_transformers_merges_are_checked_too(folder_of, change, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        check_checkpoint(folder_of("mixtral", change))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("phi3", put("model.layers.0.self_attn.rotary_emb.inv_freq", 8)),
        ("gpt2", put("transformer.h.0.attn.bias", 1, 1, 256, 256, dtype=torch.uint8)),
        ("gpt_neox", put("gpt_neox.layers.0.attention.bias", 1, 1, 9, 9, dtype=torch.bool)),
        ("gpt_neox", put("gpt_neox.layers.0.attention.masked_bias", 1)),
        ("cohere", put("model.layers.0.self_attn.rotary_emb.inv_freq", 8)),
    ],
)
def test_what_the_models_class_is_known_to_leave_is_left(folder_of, name, change):
    assert check_checkpoint(folder_of(name, change)) == "generic"


def test_tied_model_needs_one_of_two_tensors_and_may_have_both(folder_of):
    def untie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    assert check_checkpoint(folder_of("cohere")) == "generic"
    assert check_checkpoint(folder_of("cohere", untie)) == "generic"


def test_shards_without_an_index_are_one_checkpoint(tiny, tmp_path, prompt):
    tensors = load_file(tiny("phi3").path / "model.safetensors")
    names = sorted(tensors)
    for index, part in enumerate((names[:9], names[9:])):
        chosen = {name: tensors[name] for name in part}
        save_file(chosen, tmp_path / f"model-{index + 1:05}-of-00002.safetensors")
    (tmp_path / "config.json").write_bytes((tiny("phi3").path / "config.json").read_bytes())
    config = EngineConfig(tmp_path, "x", dtype="float32", device="cpu", num_threads=1)

    (output,) = LocalGenerator(create_engine(config)).generate([LocalRequest(prompt(9), 8)])

    assert output.token_ids == tiny("phi3").greedy(prompt(9), 8)


def test_other_weights_that_config_json_names_are_not_read(folder_of, tiny, prompt):
    # transformers would load the file of that name, whose headers nobody has looked at.
    folder = folder_of("phi3")
    noise = {name: torch.zeros_like(each) for name, each in load_tensors(folder).items()}
    save_file(noise, folder / "other.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "transformers_weights": "other.safetensors"})
    )
    engine = EngineConfig(folder, "x", dtype="float32", device="cpu", num_threads=1)

    (output,) = LocalGenerator(create_engine(engine)).generate([LocalRequest(prompt(9), 8)])

    assert output.token_ids == tiny("phi3").greedy(prompt(9), 8)


@pytest.mark.parametrize("name", ["phi3", "mixtral", "gpt_oss", "gemma2"])
def test_any_change_of_one_tensor_is_refused(tiny, name, chance):
    config = parse_config(tiny(name).path)
    headers = tensor_headers(tiny(name).path)
    check_generic_headers(config, headers)

    for _ in range(20):
        changed, what = changed_headers(headers, chance)
        with pytest.raises(UnsupportedModel):
            check_generic_headers(config, changed)
            pytest.fail(f"accepted: {what}")


def load_tensors(folder: Path) -> Tensors:
    return dict(load_file(folder / "model.safetensors"))


def test_native_folder_is_checked_without_torch(folder_of):
    code = (
        "import sys; from pathlib import Path;"
        "from millrace.engine.models.checkpoint_check import check_checkpoint;"
        "assert check_checkpoint(Path(sys.argv[1])) == 'native';"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code, folder_of("llama")], check=True)
