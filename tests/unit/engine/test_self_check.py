"""What the check at load finds in models of transformers, and what it lets pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.phi3 import modeling_phi3
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.engine.attention.torch_attention import TorchAttention
from millrace.engine.config import EngineConfig
from millrace.engine.engine import Engine, create_engine
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.engine.models import self_check
from millrace.hub.entry import max_model_len_of, read_config
from tests.unit.engine.conftest import NEEDS_KERNELS

BACKENDS = [pytest.param("cpu", marks=NEEDS_KERNELS), "torch"]
# Short factors end at 32 tokens.
BOUND = 32


def load(tiny, name: str, report=lambda text: None, **settings) -> Engine:
    defaults = {"dtype": "float32", "backend": "torch", "block_size": 8, "num_threads": 1}
    config = EngineConfig(tiny(name).path, name, device="cpu", **{**defaults, **settings})
    return create_engine(config, report)


@pytest.mark.parametrize("name", ["phi3-longrope", "phimoe-longrope"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk_tokens", [5, 512])
def test_longrope_equals_transformers_in_chunks_and_beside_others(
    tiny, engine_for, prompt, name, backend, chunk_tokens
):
    prompts = [prompt(length) for length in (1, 9, 26, 17)]

    outputs = LocalGenerator(engine_for(name, backend), chunk_tokens=chunk_tokens).generate(
        [LocalRequest(tokens, BOUND - len(tokens)) for tokens in prompts]
    )

    for tokens, output in zip(prompts, outputs, strict=True):
        assert output.token_ids == tiny(name).greedy(tokens, BOUND - len(tokens))


def test_longrope_equals_transformers_behind_a_cached_prefix(tiny, engine_for, drive, prompt):
    driver = drive(engine_for("phi3-longrope"))
    tokens = prompt(24)
    driver.start(0, tokens[:20], blocks=driver.take(BOUND))

    blocks = driver.blocks[0][:2] + driver.take(BOUND - 16)
    driver.start(1, tokens, num_cached_tokens=16, blocks=blocks)
    for _ in range(7):
        driver.execute()

    assert driver.outputs[1] == tiny("phi3-longrope").greedy(tokens, 8)


@pytest.mark.parametrize(
    ("name", "length", "asked", "reason"),
    [
        ("phi3-longrope", BOUND, 128, "highest position of a step"),
        ("phimoe-longrope", BOUND, 128, "highest position of a step"),
        ("phimoe-windowed", 24, 256, "its own mask hides"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_model_is_served_as_far_as_it_is_exact_and_says_so(
    tiny, name, length, asked, reason, dtype
):
    told: list[str] = []

    engine = load(tiny, name, told.append, dtype=dtype)

    assert engine.info.max_model_len == length
    (line,) = [text for text in told if "served" in text]
    assert f"served up to {length} tokens, not {asked}" in line
    assert reason in line


def test_longer_than_exact_is_refused_if_it_is_asked_for(tiny):
    with pytest.raises(ConfigError, match="max_model_len is 64; beyond 32 tokens") as caught:
        load(tiny, "phi3-longrope", max_model_len=64)
    assert caught.value.field == "max_model_len"

    assert load(tiny, "phi3-longrope", max_model_len=20).info.max_model_len == 20


@pytest.mark.parametrize("name", ["phi3-longrope", "phimoe-longrope"])
def test_the_catalogue_knows_how_long_longrope_is_served(tiny, name):
    assert max_model_len_of(read_config(tiny(name).path)) == BOUND


@pytest.mark.parametrize("name", ["phi3", "gpt2", "gpt_neox", "phi3-windowed", "mixtral"])
def test_exact_model_is_served_whole_and_without_a_word(tiny, name):
    told: list[str] = []

    assert load(tiny, name, told.append).info.max_model_len == 256
    assert not told


class Wrong:
    """Changes of a layer's code, each of them something that a real architecture does."""

    @staticmethod
    def shifts(self: Any, hidden: torch.Tensor) -> Any:
        """Mixes each token with the one before it, as RWKV's token shift and short convolutions."""
        return honest_mlp(self, hidden + hidden.roll(1, 1))

    @staticmethod
    def normalises(self: Any, hidden: torch.Tensor) -> Any:
        """Takes statistics of all tokens of the step."""
        return honest_mlp(self, hidden - hidden.mean(1, keepdim=True))

    @staticmethod
    def drops(self: Any, hidden: torch.Tensor) -> Any:
        """Gives its experts no more tokens than fit, by their order in the step."""
        out = honest_mlp(self, hidden)
        fits = torch.arange(hidden.shape[1]) < 8
        return out * fits[None, :, None]

    @staticmethod
    def scales(self: Any, hidden: torch.Tensor) -> Any:
        """Scales by the logarithm of the number of tokens, as some long-context models do."""
        return honest_mlp(self, hidden) * torch.log(torch.tensor(1.0 + hidden.shape[1]))

    @staticmethod
    def decodes(self: Any, hidden: torch.Tensor) -> Any:
        """Goes another way for a single token."""
        return honest_mlp(self, hidden) * (0.5 if hidden.shape[1] == 1 else 1.0)

    @staticmethod
    def remembers(self: Any, hidden: torch.Tensor) -> Any:
        """Keeps a state from step to step."""
        past = getattr(self, "past", 0.0)
        self.past = hidden.mean(1, keepdim=True).clone()
        return honest_mlp(self, hidden + past)

    @staticmethod
    def fails(self: Any, hidden: torch.Tensor) -> Any:
        """Does not run at all."""
        return self.no_such_attribute(hidden)


honest_mlp: Any = Phi3MLP.forward


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("shifts", "carry something from token to token"),
        ("normalises", "carry something from token to token"),
        ("drops", "a row's logits are .* from those it has alone"),
        ("scales", "a row's logits are .* from those it has alone"),
        ("decodes", "in a step of one token a row's logits"),
        ("remembers", "depends on the highest position of a step"),
        ("fails", "its code fails on a few tokens: AttributeError: .*no_such_attribute"),
    ],
)
def test_model_whose_tokens_touch_each_other_is_refused(tiny, monkeypatch, fault, reason, dtype):
    monkeypatch.setattr(Phi3MLP, "forward", getattr(Wrong, fault))

    with pytest.raises(UnsupportedModel, match=f"Phi3ForCausalLM: .*{reason}"):
        load(tiny, "phi3", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("gpt_oss", "sinks"),
        ("gpt_oss", "sliding_window"),
        ("phi3-windowed", "sliding_window"),
        ("gemma2", "softcap"),
        ("granite", "scale"),
        ("phi3", "scale"),
    ],
)
def test_attention_that_lacks_something_is_refused(tiny, monkeypatch, name, lost, dtype):
    honest = TorchAttention.forward

    def forward(self, layer, q, k, v, metadata, scale, window=None, softcap=None, sinks=None):
        given = {"scale": scale, "sliding_window": window, "softcap": softcap, "sinks": sinks}
        given[lost] = 2 * scale if lost == "scale" else None
        return honest(self, layer, q, k, v, metadata, *given.values())

    monkeypatch.setattr(TorchAttention, "forward", forward)

    with pytest.raises(UnsupportedModel, match="its own attention differs by"):
        load(tiny, name, dtype=dtype)


def scaled_twice(*args: Any, **kwargs: Any) -> Any:
    return honest_attention(*args, **{**kwargs, "scaling": 2 * kwargs["scaling"]})


def unmasked(**_):
    return None


def in_chunks(**kwargs):
    same_chunk = {"and_mask_function": lambda batch, head, q, k: q // 16 == k // 16}
    return honest_mask(**{**kwargs, **same_chunk})


honest_attention: Any = modeling_phi3.eager_attention_forward
honest_mask: Any = vars(modeling_phi3)["create_causal_mask"]


@pytest.mark.parametrize(
    ("function", "changed", "reason"),
    [
        ("eager_attention_forward", scaled_twice, "its own attention differs by"),
        ("create_causal_mask", unmasked, "its own attention differs by"),
        ("create_causal_mask", in_chunks, "its own mask hides"),
    ],
)
def test_attention_that_does_more_than_it_tells_is_refused(
    tiny, monkeypatch, function, changed, reason
):
    monkeypatch.setattr(modeling_phi3, function, changed)

    with pytest.raises(UnsupportedModel, match=reason):
        load(tiny, "phi3")


def test_window_is_crossed_if_that_takes_no_longer_than_it_may(tiny, monkeypatch):
    lengths: list[int] = []
    honest = self_check._Check.compare_attention

    def compare(self, num_tokens):
        lengths.append(num_tokens)
        return honest(self, num_tokens)

    monkeypatch.setattr(self_check._Check, "compare_attention", compare)
    load(tiny, "phi3-windowed")
    monkeypatch.setattr(self_check, "MAX_SECONDS", 0.0)
    load(tiny, "phi3-windowed")

    assert lengths == [12, 20 + 4, 12]


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 5, 6])
def test_cache_of_few_blocks_still_shows_what_is_wrong(tiny, monkeypatch, num_blocks):
    assert load(tiny, "phi3", num_blocks=num_blocks).num_blocks == num_blocks

    monkeypatch.setattr(Phi3MLP, "forward", Wrong.scales)
    with pytest.raises(UnsupportedModel, match="a row's logits are"):
        load(tiny, "phi3", num_blocks=num_blocks)


def test_length_too_short_for_the_check_is_refused(tiny):
    with pytest.raises(ConfigError, match="1 blocks of 8 and 3 tokens are too few"):
        load(tiny, "phi3", max_model_len=3, max_num_seqs=1)


def test_model_of_nan_is_refused(tiny, tmp_path):
    source = tiny("phi3").path
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())

    with pytest.raises(UnsupportedModel, match="its logits are not numbers"):
        create_engine(EngineConfig(tmp_path, "x", device="cpu", backend="torch", num_threads=1))
