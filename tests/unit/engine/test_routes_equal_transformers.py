"""Both routes, token for token against `generate` of transformers in float32."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.core.sampling import SamplingSpec
from millrace.engine.batch import Work, build_batch
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.engine.model_runner import ModelRunner
from millrace.engine.row import RowTable
from tests.unit.engine.conftest import NEEDS_KERNELS

NATIVE = [
    "llama",
    "llama-biased",
    "llama-llama3",
    "llama-linear",
    "mistral",
    "mistral-windowed",
    "qwen2",
    "qwen2-windowed",
    "qwen3",
]
GENERIC = [
    *("gpt_neox", "gemma2", "phi3", "phi3-windowed", "mixtral", "gpt_oss", "cohere", "granite"),
    *("gpt2", "phimoe", "hunyuan_v1_moe"),
]
BOTH = [*((name, "native") for name in NATIVE), *((name, "generic") for name in GENERIC)]
BORROWED = [(name, "generic") for name in ("llama", "mistral-windowed", "qwen2-windowed", "qwen3")]
LENGTHS = (1, 6, 19, 40)
BACKENDS = [pytest.param("cpu", marks=NEEDS_KERNELS), "torch"]


@pytest.mark.parametrize(("name", "route"), [*BOTH, *BORROWED])
@pytest.mark.parametrize("chunk_tokens", [7, 512])
@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_output_equals_transformers(
    tiny, engine_for, prompt, name, route, chunk_tokens, backend
):
    engine = engine_for(name, backend, route="auto" if (name, route) in BOTH else route)
    prompts = [prompt(length) for length in LENGTHS]

    outputs = LocalGenerator(engine, chunk_tokens=chunk_tokens).generate(
        [LocalRequest(tokens, 20) for tokens in prompts]
    )

    assert engine.info.route == route
    expected = [tiny(name).greedy(tokens, 20) for tokens in prompts]
    assert [output.token_ids for output in outputs] == expected


@pytest.mark.parametrize(("name", "route"), [*BOTH, ("llama", "generic")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_equal_transformers(tiny, prompt, drive, name, route, backend):
    config = EngineConfig(
        tiny(name).path,
        name,
        device="cpu",
        dtype="float32",
        backend=backend,
        route=route,
        max_num_seqs=4,
        num_threads=1,
    )
    runner = ModelRunner.load(config)
    rows = RowTable(4)
    driver = drive(create_engine(config))
    prompts = [prompt(length) for length in LENGTHS]
    work = []
    for index, tokens in enumerate(prompts):
        row = rows.admit(driver.admission(index, tokens, sampling=SamplingSpec(seed=1)))
        runner.cache.clear_blocks(driver.blocks[index])
        work.append(Work(row, len(tokens)))

    batch = build_batch(work, rows, runner.cache.block_size)
    logits = torch.as_tensor(runner.forward(batch).values)

    for item, got in zip(batch.sampling_work, logits, strict=True):
        torch.testing.assert_close(
            got, tiny(name).last_logits(item.row.token_ids), rtol=1e-4, atol=1e-4
        )


def test_routes_agree_in_bfloat16(engine_for, prompt):
    # Rounding differs between the routes, so only the first tokens are compared.
    requests = [LocalRequest(prompt(length), 1) for length in range(1, 30, 4)]

    native, generic = (
        LocalGenerator(engine_for("llama", route=route, dtype="bfloat16")).generate(requests)
        for route in ("native", "generic")
    )

    same = sum(a.token_ids == b.token_ids for a, b in zip(native, generic, strict=True))
    assert same >= len(requests) - 1


def test_counts_come_from_the_loaded_tensors(tiny, engine_for):
    expected = sum(parameter.numel() for parameter in tiny("llama").model.parameters())

    native, generic = (engine_for("llama", route=route).info for route in ("native", "generic"))

    assert native.num_parameters == generic.num_parameters == expected
    assert native.weight_bytes == generic.weight_bytes == 4 * expected


def test_native_route_refuses_what_only_the_generic_one_computes(tiny):
    with pytest.raises(ConfigError, match="phi3 is served by the generic one"):
        create_engine(EngineConfig(tiny("phi3").path, "x", route="native"))


def test_model_with_hidden_state_is_refused_at_load(tiny, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')

    with pytest.raises(UnsupportedModel, match="mamba: it keeps a recurrent state"):
        create_engine(EngineConfig(tmp_path, "x"))


def test_folder_without_safetensors_is_refused(tiny, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny("llama").path / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")

    with pytest.raises(UnsupportedModel, match="no \\*.safetensors file"):
        create_engine(EngineConfig(tmp_path, "x"))


@pytest.mark.parametrize(
    ("name", "dropped", "added", "message"),
    [
        ("qwen3", "model.layers.1.self_attn.q_norm.weight", None, "lacks the tensor .*q_norm"),
        ("llama", None, "model.layers.0.self_attn.q_norm.weight", "has the tensor .*q_norm"),
        ("phi3", "model.layers.1.mlp.down_proj.weight", None, "lacks the tensor .*down_proj"),
    ],
)
def test_checkpoint_that_does_not_fit_its_config_is_refused(
    tiny, tmp_path, name, dropped, added, message
):
    source = tiny(name).path
    tensors = load_file(source / "model.safetensors")
    if dropped is not None:
        del tensors[dropped]
    if added is not None:
        tensors[added] = torch.ones(16)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())

    with pytest.raises(UnsupportedModel, match=message):
        create_engine(EngineConfig(tmp_path, "x", device="cpu", num_threads=1))


def test_sharded_checkpoint_is_read_whole(tiny, engine_for, prompt, tmp_path):
    tiny("llama").model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config = EngineConfig(tmp_path, "x", dtype="float32", device="cpu", num_threads=1)

    sharded = LocalGenerator(create_engine(config)).generate([LocalRequest(prompt(9), 8)])

    assert sharded[0].token_ids == tiny("llama").greedy(prompt(9), 8)


def test_broken_files_are_named(tiny, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny("llama").path / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(
        UnsupportedModel, match="model.safetensors: not a complete safetensors file"
    ):
        create_engine(EngineConfig(tmp_path, "x", device="cpu", num_threads=1))

    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match="cannot read .*config.json"):
        create_engine(EngineConfig(tmp_path, "x", device="cpu", num_threads=1))
