"""One model on one device: loading, sizing the KV cache, and the forward pass of a batch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.core.model import ModelInfo

from .attention import create_attention
from .attention.base import AttentionStep, Progress
from .batch import Batch
from .config import EngineConfig, resolve_config, weight_kind
from .config_json import read_config
from .default_sampling import default_sampling
from .generation_config import read_generation_config
from .kernels.cpu.load import default_cache_dir, load_kernels
from .kv_cache import (
    CPU_MEMORY_SHARE,
    GPU_MEMORY_RESERVE,
    LayerShape,
    PagedCache,
    choose_num_blocks,
)
from .machine import available_memory_bytes, has_gpu_driver
from .models.base import Logits, Model
from .models.checkpoint_check import check_storage, refusals_naming
from .models.llama_spec import LlamaSpec
from .models.llama_tensors import check_llama_headers
from .models.misfits import UNTIED
from .routes import is_native, route_of
from .tensor_headers import TensorHeader

if TYPE_CHECKING:
    import torch

    from .kernels.cpu.library import Kernels
    from .models.generic import GenericModel
    from .sampler import Drawer

Report = Callable[[str], None]


class ModelRunner:
    """Model, KV cache and attention backend, put together."""

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        backend: str,
        info: ModelInfo,
        device: str,
        drawer: Drawer | None,
    ) -> None:
        self.cache = cache
        self.info = info
        self.device = device
        self.drawer = drawer
        self.progress = Progress()
        self._model = model
        self._backend = create_attention(backend, cache)

    @staticmethod
    def load(config: EngineConfig, report: Report = lambda text: None) -> ModelRunner:
        """The model at `config.model_path`; see `create_engine` for the errors."""
        checkpoint = read_config(config.model_path)
        route = _choose_route(config.route, checkpoint)
        generation = read_generation_config(config.model_path, report)
        headers = check_storage(config.model_path)
        kernels = load_kernels(config, report)
        config = resolve_config(
            config,
            checkpoint,
            has_cuda=_has_cuda(config.device),
            has_kernels=kernels is not None,
        )
        if config.backend != "cpu":
            kernels = None
        loader = _Loader(config, route, kernels, headers, report)
        model, max_positions = loader.load_model(checkpoint)
        max_model_len = _choose_max_model_len(config.max_model_len, max_positions)
        cache = loader.create_cache(model, max_model_len)
        info = ModelInfo(
            name=config.name,
            aliases=config.aliases,
            revision=config.revision,
            dtype=config.dtype,
            # A sequence longer than the whole cache could never be finished.
            max_model_len=min(max_model_len, cache.num_blocks * cache.block_size),
            vocab_size=model.vocab_size,
            eos_token_ids=tuple(
                token_id for token_id in generation.eos_token_ids if token_id < model.vocab_size
            ),
            num_parameters=model.num_parameters,
            weight_bytes=model.weight_bytes,
            quantization=_quantization(config),
            architecture=(checkpoint.get("architectures") or [checkpoint["model_type"]])[0],
            route=route,
            config_json=json.dumps(checkpoint, sort_keys=True),
            default_sampling=default_sampling(generation, report),
        )
        drawer = _create_drawer(kernels)
        runner = ModelRunner(model, cache, config.backend, info, config.device, drawer)
        if route == "generic":
            from .models.self_check import check_served

            generic = cast("GenericModel", model)
            check_served(generic, runner, generic.exactness.windows)
        return runner

    def step(self, batch: Batch) -> AttentionStep:
        """The attention backend, prepared for a batch."""
        return AttentionStep(self._backend, self._backend.prepare(batch), self.progress)

    def forward(self, batch: Batch) -> Logits:
        """Logits of the rows that sample, in the model's dtype; valid until the next call."""
        logits = self._model.forward(batch, self.step(batch))
        if self.device != "cpu":
            import torch

            # Errors of the device must surface inside the step, before any row moves on.
            torch.cuda.synchronize(self.device)
        return logits


def _has_cuda(asked: str) -> bool:
    """Asks torch, which takes a second to import and memory to keep, only where there is hope."""
    if asked == "cpu" or not has_gpu_driver():
        return False
    import torch

    return torch.cuda.is_available()


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


def _max_positions(parsed: Any) -> int:
    for config in (parsed, parsed.get_text_config(decoder=True)):
        for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
            value = getattr(config, name, None)
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


@dataclass(frozen=True, slots=True)
class _Loader:
    """Makes model and cache for one set of resolved settings.

    The native route over the kernels does without torch.
    """

    config: EngineConfig
    route: str
    kernels: Kernels | None
    headers: Sequence[TensorHeader]
    report: Report

    @property
    def dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.config.dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device(self.config.device)

    def load_model(self, settings: Mapping[str, Any]) -> tuple[Model, int]:
        """The model that config.json's content describes, and the number of positions it knows."""
        if self.route == "generic":
            return self._load_generic()
        with refusals_naming(self.config.model_path):
            spec = LlamaSpec.from_config(settings)
            check_llama_headers(spec, self.headers)
        return self._load_native(spec), spec.max_positions

    def _load_generic(self) -> tuple[Model, int]:
        import torch

        from .models.generic import GenericModel
        from .models.generic_tensors import check_generic_headers, parse_config

        self._share_threads()
        folder = self.config.model_path
        parsed = parse_config(folder)
        with refusals_naming(folder):
            check_generic_headers(parsed, self.headers)
        asked = self.config.max_model_len
        wanted = _choose_max_model_len(asked, _max_positions(parsed))
        with torch.inference_mode():
            model = GenericModel(folder, parsed, self.dtype, self.device, wanted)
        exact = model.exactness
        if exact.reason and asked:
            why = f"beyond {exact.length} tokens {exact.reason}"
            raise ConfigError(f"max_model_len is {asked}; {why}", field="max_model_len")
        if exact.reason:
            self.report(
                f"{model.name} is served up to {exact.length} tokens, not {wanted}: "
                f"beyond, {exact.reason}"
            )
        if model.is_untied:
            self.report(UNTIED)
        if self.kernels is not None:
            model.pack_linears(self.kernels, weight_kind(self.config), self.report)
        return model, exact.length

    def _load_native(self, spec: LlamaSpec) -> Model:
        folder = self.config.model_path
        if self.kernels is not None:
            from .models.cpu_llama import CpuLlama

            kind, cache_dir = weight_kind(self.config), self.config.cache_dir
            return CpuLlama(
                folder, spec, self.kernels, kind, cache_dir or default_cache_dir(), self.report
            )
        import torch

        from .loader import Checkpoint
        from .models.llama import LlamaModel

        self._share_threads()
        with torch.inference_mode(), Checkpoint(folder, self.dtype, self.device) as checkpoint:
            return LlamaModel(spec, checkpoint, self.report)

    def _share_threads(self) -> None:
        if self.config.device == "cpu":
            import torch

            torch.set_num_threads(self.config.num_threads)

    def create_cache(self, model: Model, max_model_len: int) -> PagedCache:
        """The K/V cache, as large as settings and memory allow."""
        config = self.config
        num_blocks = choose_num_blocks(
            config.num_blocks,
            bytes_per_block=self._block_bytes(model.layers),
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=max_model_len,
            memory_bytes=self._cache_memory_bytes(),
        )
        if self.kernels is None:
            from .torch_kv_cache import KVCache

            return KVCache(model.layers, num_blocks, config.block_size, self.dtype, self.device)
        from .kernels.cpu.tile_cache import TileCache

        return TileCache(self.kernels, model.layers, num_blocks, config.block_size, self._kv_kind())

    def _kv_kind(self) -> int:
        from .kernels.cpu.library import KV_KINDS

        return KV_KINDS["int8" if self.config.kv_dtype == "int8" else self.config.dtype]

    def _block_bytes(self, layers: Sequence[LayerShape]) -> int:
        if self.kernels is None:
            from .torch_kv_cache import block_bytes

            return block_bytes(layers, self.config.block_size, self.dtype)
        from .kernels.cpu.tile_cache import check_block_size, layer_block_bytes

        check_block_size(self.config.block_size)
        kind = self._kv_kind()
        return sum(
            layer_block_bytes(self.kernels, layer, self.config.block_size, kind) for layer in layers
        )

    def _cache_memory_bytes(self) -> int:
        if self.config.device != "cpu":
            import torch

            free, total = torch.cuda.mem_get_info(self.device)
            return free - int(total * GPU_MEMORY_RESERVE)
        return int(available_memory_bytes() * CPU_MEMORY_SHARE)


def _create_drawer(kernels: Kernels | None) -> Drawer | None:
    if kernels is None:
        return None
    from .kernels.cpu.drawer import KernelDrawer

    return KernelDrawer(kernels)


def _quantization(config: EngineConfig) -> str:
    """As registrations name it: weights, then K/V where it is narrower too."""
    kv = "+kv-int8" if config.kv_dtype == "int8" else ""
    return f"{config.quantization}{kv}"
