"""Tiny random checkpoints made with transformers, and a driver that feeds plans to an engine."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission, StepPlan, StepResult
from millrace.engine.config import EngineConfig
from millrace.engine.engine import Engine, create_engine
from millrace.engine.kernels.cpu.build import find_compiler
from millrace.engine.kernels.cpu.instruction_paths import choose_path
from tests.unit.engine.damages import Tensors

GREEDY = SamplingSpec(temperature=0.0)
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.5 + 2 * index for index in range(8)],
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE_LENGTHS = {"original_max_position_embeddings": 32, "max_position_embeddings": 128}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
HALF_WINDOWED = ["full_attention", "sliding_attention", "sliding_attention"]
HAS_KERNELS = choose_path("auto") is not None and find_compiler() is not None
NEEDS_KERNELS = pytest.mark.skipif(
    not HAS_KERNELS,
    reason="no kernels for this CPU or no C++ compiler",
)
BACKENDS = ["torch", *["cpu"] * HAS_KERNELS]
KERNELS = Path(__file__).parents[3] / ".cache" / "kernels"
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR_ROPE}),
    "mistral-windowed": ("mistral", {"sliding_window": 11}),
    "mistral": ("mistral", {"sliding_window": None}),
    # Neither hidden size nor heads are whole vectors of any machine.
    "mistral-narrow": ("mistral", {"sliding_window": None, "hidden_size": 72}),
    "qwen2": ("qwen2", {}),
    "qwen2-windowed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "layer_types": HALF_WINDOWED},
    ),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "gpt_neox": ("gpt_neox", {"num_key_value_heads": 4}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 10,
            "head_dim": 16,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 5.0,
        },
    ),
    "phi3": ("phi3", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "head_dim": 16, "sliding_window": 8}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "granite": ("granite", {"logits_scaling": 4.0}),
    "gpt2": ("gpt2", {"n_positions": 256, "n_embd": 64, "n_layer": 3, "n_head": 4}),
    "phi3-windowed": ("phi3", {"sliding_window": 20}),
    "phi3-longrope": ("phi3", {**LONGROPE_LENGTHS, "rope_parameters": LONGROPE}),
    "phimoe": ("phimoe", {"num_local_experts": 4, "sliding_window": None}),
    "phimoe-windowed": ("phimoe", {"num_local_experts": 4, "sliding_window": 24}),
    "phimoe-longrope": (
        "phimoe",
        {
            **LONGROPE_LENGTHS,
            "num_local_experts": 4,
            "sliding_window": None,
            "rope_parameters": {**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3},
        },
    ),
    "hunyuan_v1_moe": (
        "hunyuan_v1_moe",
        {"head_dim": 16, "num_experts": 4, "moe_topk": 2, "use_cla": False},
    ),
}


@dataclass(frozen=True)
class Tiny:
    """A saved checkpoint and the transformers model it was saved from."""

    path: Path
    model: Any

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
        )
        return list(map(int, out[0, len(prompt) :]))

    def last_logits(self, tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.model(torch.tensor([tokens])).logits
            return logits[0, -1].float()


@pytest.fixture(scope="session")
def kernel_folder() -> Path:
    """Where built kernels stay from run to run; their names change with their sources."""
    KERNELS.mkdir(parents=True, exist_ok=True)
    return KERNELS


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory, kernel_folder) -> Iterator[Path]:
    """What engines keep on disk: packed weights in a folder of this run, kernels as above."""
    folder = tmp_path_factory.mktemp("engine-cache")
    (folder / "cache").mkdir()
    (folder / "cache" / "kernels").symlink_to(kernel_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLRACE_HOME", str(folder))
        yield folder / "cache"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[[str], Tiny]:
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    made: dict[str, Tiny] = {}

    def make(name: str) -> Tiny:
        if name not in made:
            kind, changes = CONFIGS[name]
            torch.manual_seed(20)
            config = transformers.AutoConfig.for_model(kind, **{**SIZES, **changes})
            model = transformers.AutoModelForCausalLM.from_config(config).eval()
            _randomise_vectors(model)
            path = tmp_path_factory.mktemp(name)
            model.save_pretrained(path)
            made[name] = Tiny(path, model)
        return made[name]

    return make


def _randomise_vectors(model: Any) -> None:
    # Biases start as zeros and norms as ones: both would hide an omission.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)


@pytest.fixture(scope="session")
def engine_for(tiny) -> Callable[..., Engine]:
    engines: dict[tuple[Any, ...], Engine] = {}

    def make(name: str, backend: str = "torch", **settings: Any) -> Engine:
        # One thread: the tests' matrices are tiny, and other processes may want the CPUs too.
        defaults = {"max_num_seqs": 8, "dtype": "float32", "num_threads": 1, "backend": backend}
        defaults["block_size"] = 32 if backend == "cpu" else 8
        settings = {**defaults, **settings}
        key = (name, *sorted(settings.items()))
        if key not in engines:
            config = EngineConfig(model_path=tiny(name).path, name=name, device="cpu", **settings)
            engines[key] = create_engine(config)
        engines[key].reset()
        return engines[key]

    return make


@pytest.fixture
def folder_of(tiny, tmp_path) -> Callable[..., Path]:
    """A copy of a tiny checkpoint after a change of its tensors and with more files."""

    folder: Path = tmp_path

    def make(name: str, change: Callable[[Tensors], object] = len, **files: str) -> Path:
        source: Path = tiny(name).path
        tensors = load_file(source / "model.safetensors")
        change(tensors)
        if tensors:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
        for file, content in files.items():
            (folder / file.replace("__", ".")).write_text(content)
        return folder

    return make


@dataclass
class Driver:
    """Hands out blocks in a scattered order, builds plans and collects each row's tokens."""

    engine: Engine
    plan_id: int = 0
    outputs: dict[int, list[int]] = field(default_factory=dict)
    blocks: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = torch.randperm(self.engine.num_blocks, generator=torch.Generator().manual_seed(5))
        self.free = order.tolist()

    def take(self, num_tokens: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-num_tokens // self.engine.block_size))]

    def admission(self, row: int, tokens: list[int], **changes: Any) -> Admission:
        values: dict[str, Any] = {
            "row": row,
            "row_epoch": 100 + row,
            "token_ids": tokens,
            "num_prompt_tokens": len(tokens),
            "num_cached_tokens": 0,
            "choice": 0,
            "sampling": GREEDY,
            "stop_token_ids": (),
            "max_len": self.engine.info.max_model_len,
            **changes,
        }
        if "blocks" not in values:
            values["blocks"] = self.take(len(tokens) + 48)
        self.blocks[row] = list(values["blocks"])
        self.outputs[row] = []
        return Admission(**values)

    def execute(self, **changes: Any) -> StepResult:
        self.plan_id += 1
        return self.collect(self.engine.execute(StepPlan(self.plan_id, **changes)))

    def lease(self) -> StepResult | None:
        result = self.engine.run_lease_step()
        return None if result is None else self.collect(result)

    def collect(self, result: StepResult) -> StepResult:
        for token in result.tokens:
            self.outputs[token.row].append(token.token_id)
        return result

    def start(self, row: int, tokens: list[int], **changes: Any) -> StepResult:
        """Admits a row and prefills it in the same step; everyone else is held."""
        admission = self.admission(row, tokens, **changes)
        left = len(tokens) - admission.num_cached_tokens
        return self.execute(
            admissions=[admission],
            chunks=[(row, left)],
            hold_rows=list(range(self.engine.max_num_seqs)),
        )


@pytest.fixture
def chance() -> random.Random:
    """Draws otherwise in each run, and tells how to draw so again."""
    seed = int(os.environ.get("MILLRACE_TEST_SEED") or random.SystemRandom().getrandbits(32))
    print(f"MILLRACE_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def drive() -> Callable[[Engine], Driver]:
    return Driver


@pytest.fixture
def prompt() -> Callable[[int], list[int]]:
    def make(num_tokens: int) -> list[int]:
        generator = torch.Generator().manual_seed(num_tokens)
        return torch.randint(1, 128, (num_tokens,), generator=generator).tolist()

    return make
