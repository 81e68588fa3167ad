"""One model on one device: loading, sizing the KV cache, and the forward pass of a batch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.core.model import ModelInfo

from .attention import create_attention
from .attention.base import AttentionStep, Progress
from .batch import Batch
from .config import EngineConfig, resolve_config
from .kv_cache import (
    CPU_MEMORY_SHARE,
    GPU_MEMORY_RESERVE,
    KVCache,
    block_bytes,
    choose_num_blocks,
)
from .loader import Checkpoint, read_config, read_eos_token_ids
from .machine import available_memory_bytes
from .models.base import Model
from .routes import is_native, route_of

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class ModelRunner:
    """Model, KV cache and attention backend, put together."""

    def __init__(
        self, model: Model, cache: KVCache, backend: str, info: ModelInfo, device: torch.device
    ) -> None:
        self.cache = cache
        self.info = info
        self.device = device
        self.progress = Progress()
        self._model = model
        self._backend = create_attention(backend, cache)

    @staticmethod
    def load(config: EngineConfig) -> ModelRunner:
        """The model at `config.model_path`; see `create_engine` for the errors."""
        checkpoint = read_config(config.model_path)
        config = resolve_config(config, checkpoint, has_cuda=torch.cuda.is_available())
        route = _choose_route(config.route, checkpoint)
        if config.device == "cpu":
            torch.set_num_threads(config.num_threads)
        device = torch.device(config.device)
        dtype = TORCH_DTYPES[config.dtype]
        with torch.inference_mode():
            model, max_positions = _load_model(config, route, dtype, device)
        max_model_len = _choose_max_model_len(config.max_model_len, max_positions)
        cache = _create_cache(config, model, max_model_len, dtype, device)
        info = ModelInfo(
            name=config.name,
            aliases=config.aliases,
            revision=config.revision,
            dtype=config.dtype,
            # A sequence longer than the whole cache could never be finished.
            max_model_len=min(max_model_len, cache.num_blocks * cache.block_size),
            vocab_size=model.vocab_size,
            eos_token_ids=read_eos_token_ids(config.model_path, checkpoint),
            num_parameters=model.num_parameters,
            weight_bytes=model.weight_bytes,
            architecture=(checkpoint.get("architectures") or [checkpoint["model_type"]])[0],
            route=route,
            config_json=json.dumps(checkpoint, sort_keys=True),
        )
        runner = ModelRunner(model, cache, config.backend, info, device)
        if route == "generic":
            from .models.self_check import check_cached_equals_whole

            check_cached_equals_whole(runner.forward, cache, info, device)
        return runner

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of the rows that sample, [rows, vocab_size], in the model's dtype."""
        step = AttentionStep(self._backend, self._backend.prepare(batch), self.progress)
        logits = self._model.forward(batch, step)
        if self.device.type == "cuda":
            # Errors of the device must surface inside the step, before any row moves on.
            torch.cuda.synchronize(self.device)
        return logits


def _choose_route(asked: str, checkpoint: Mapping[str, Any]) -> str:
    route, refusal = route_of(checkpoint)
    if refusal:
        raise UnsupportedModel(refusal)
    if asked == "native" and not is_native(checkpoint):
        raise ConfigError(
            f"route is 'native', but {checkpoint['model_type']} is served by the generic one",
            field="route",
        )
    return route if asked == "auto" else asked


def _load_model(
    config: EngineConfig, route: str, dtype: torch.dtype, device: torch.device
) -> tuple[Model, int]:
    parsed = _parse_config(config.model_path)
    if route == "generic":
        from .models.generic import GenericModel

        return GenericModel(config.model_path, parsed, dtype, device), _max_positions(parsed)
    from .models.llama import LlamaModel, LlamaSpec

    with Checkpoint(config.model_path, dtype, device) as checkpoint:
        return LlamaModel(LlamaSpec.from_config(parsed), checkpoint), _max_positions(parsed)


def _parse_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Each configuration class has its own ways of refusing values.
    except Exception as error:
        raise UnsupportedModel(f"{folder / 'config.json'} is not valid: {error}") from error


def _max_positions(parsed: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value = getattr(parsed, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return sys.maxsize


def _choose_max_model_len(setting: int, max_positions: int) -> int:
    if setting > max_positions:
        raise ConfigError(
            f"max_model_len is {setting}; the model knows {max_positions} positions",
            field="max_model_len",
        )
    if not setting and max_positions == sys.maxsize:
        raise ConfigError("the model declares no context length; set it", field="max_model_len")
    return setting or max_positions


def _create_cache(
    config: EngineConfig,
    model: Model,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory = free - int(total * GPU_MEMORY_RESERVE)
    else:
        memory = int(available_memory_bytes() * CPU_MEMORY_SHARE)
    num_blocks = choose_num_blocks(
        config.num_blocks,
        bytes_per_block=block_bytes(model.layers, config.block_size, dtype),
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        memory_bytes=memory,
    )
    return KVCache(model.layers, num_blocks, config.block_size, dtype, device)
