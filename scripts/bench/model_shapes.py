"""The matrices and heads of a model, and what a step of it costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from millrace.engine.config import head_kind
from millrace.engine.config_json import read_config
from millrace.engine.kernels.cpu.library import KINDS, TILE_TOKENS, Kernels
from millrace.engine.models.llama_spec import LlamaSpec

from .limits import Cost


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """Linear layers as (columns, k), those of a decoder layer and the head; heads of attention."""

    layer: dict[str, tuple[int, int]]
    head: tuple[int, int]
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int

    @staticmethod
    def of(folder: Path) -> ModelShapes:
        """From a checkpoint's config.json."""
        config = read_config(folder)
        spec = LlamaSpec.from_config(config)
        hidden, inner = spec.hidden_size, int(config["intermediate_size"])
        heads = spec.num_heads * spec.head_dim
        return ModelShapes(
            layer={
                "qkv": (heads + 2 * spec.num_kv_heads * spec.head_dim, hidden),
                "o": (hidden, heads),
                "gate_up": (2 * inner, hidden),
                "down": (hidden, inner),
            },
            head=(spec.vocab_size, hidden),
            num_layers=spec.num_layers,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            max_positions=spec.max_positions,
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """All distinct linear layers."""
        return {**self.layer, "head": self.head}

    def weight_bytes(self, kernels: Kernels, kind: str) -> int:
        """What a step reads of the weights: all matrices as packed, scales included."""
        panel_bytes = kernels.panel_bytes
        layer = sum(panel_bytes(KINDS[kind], *shape) for shape in self.layer.values())
        return int(self.num_layers * layer + panel_bytes(KINDS[head_kind(kind)], *self.head))

    def kv_bytes(self, kernels: Kernels, kind: str, num_tokens: int) -> float:
        """K/V of so many tokens in one layer, as the cache keeps it."""
        tile = kernels.tile_bytes(KINDS[kind], self.head_dim, self.head_dim)
        return float(num_tokens * self.num_kv_heads * tile / TILE_TOKENS)

    def attention_flops(self, num_seen: int) -> float:
        """Of one layer; `num_seen` is the sum over new tokens of the tokens that each sees."""
        return 4.0 * self.num_heads * self.head_dim * num_seen

    def step_cost(
        self, kernels: Kernels, kinds: tuple[str, str], lengths: list[tuple[int, int]]
    ) -> Cost:
        """A step of rows of (new tokens, context), each sampling once; kinds: weights, K/V."""
        num_new = sum(new for new, _ in lengths)
        seen = sum(seen_tokens(new, context) for new, context in lengths)
        num_context = sum(context for _, context in lengths)
        layer_products = sum(columns * k for columns, k in self.layer.values())
        head_products = self.head[0] * self.head[1]
        num_bytes = self.weight_bytes(kernels, kinds[0])
        num_flops = 2.0 * (self.num_layers * layer_products * num_new)
        num_flops += 2.0 * head_products * len(lengths)
        return Cost(
            num_bytes + self.num_layers * self.kv_bytes(kernels, kinds[1], num_context),
            num_flops + self.num_layers * self.attention_flops(seen),
        )


def seen_tokens(num_new: int, context: int) -> int:
    """How many tokens the last `num_new` of `context` see together, each itself included."""
    first = context - num_new + 1
    return num_new * (first + context) // 2
