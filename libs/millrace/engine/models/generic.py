"""The generic route: any plain decoder of transformers, with our paged attention inside its layers.

transformers lets attention be replaced by name (`AttentionInterface`). A name it knows no mask for
also switches its mask building off, which is what lets rows of one flattened batch share a pass:
positions come with the batch, and causality is the backend's business. The step travels through the
model's own keyword arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

from millrace.core.errors import UnsupportedModel
from millrace.engine.attention.base import AttentionStep
from millrace.engine.batch import Batch
from millrace.engine.kv_cache import LayerShape
from millrace.engine.loader import weight_files
from millrace.engine.tensors import to_device

from .base import Logits

if TYPE_CHECKING:
    from millrace.engine.kernels.cpu.library import Kernels

# No part of the name may be one that transformers treats specially (flash, sdpa, flex, paged).
ATTENTION_NAME = "millrace"
STEP_ARGUMENT = "millrace_step"


class GenericModel:
    """A transformers model behind our `Model`; computes logits only for rows that sample."""

    def __init__(self, folder: Path, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)
        weight_files(folder)
        with _without_progress_bar():
            model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=ATTENTION_NAME,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        # transformers fills what a file lacks with random numbers.
        lacking = sorted(map(str, {*loading["missing_keys"], *loading["mismatched_keys"]}))
        if lacking:
            raise UnsupportedModel(f"{folder} lacks {len(lacking)} tensors, {lacking[0]!r} first")
        self._model = model.eval().to(device)
        self._device = device
        if "logits_to_keep" not in inspect.signature(self._model.forward).parameters:
            raise UnsupportedModel(
                f"{type(self._model).__name__} cannot compute logits for chosen tokens only"
            )
        self.vocab_size = int(self._model.get_output_embeddings().weight.shape[0])
        parameters = list(self._model.parameters())
        self.num_parameters = sum(parameter.numel() for parameter in parameters)
        self.weight_bytes = sum(parameter.nbytes for parameter in parameters)
        self.layers = self._probe()

    def pack_linears(self, kernels: Kernels, kind: str, report: Callable[[str], None]) -> None:
        """Puts the kernels' packed products in the place of the model's linear layers."""
        from millrace.engine.kernels.cpu.packed_linear import pack_linears

        report(f"packing the weights as {kind} for {kernels.path}")
        saved = pack_linears(self._model, kernels, kind, self._model.get_output_embeddings())
        self.weight_bytes -= saved

    @torch.inference_mode()
    def forward(self, batch: Batch, step: AttentionStep) -> Logits:
        """See `Model.forward`."""
        arrays = (batch.input_ids, batch.positions, batch.sample_indices)
        input_ids, positions, keep = (to_device(array, self._device) for array in arrays)
        return Logits(self._call(input_ids, positions, keep, step))

    def _call(
        self, input_ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor, step: Any
    ) -> torch.Tensor:
        # The model's own forward, and not just its layers: logit scaling and softcaps live there.
        output = self._model(
            input_ids=input_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=keep,
            **{STEP_ARGUMENT: step},
        )
        return cast(torch.Tensor, output.logits[0])

    def _probe(self) -> tuple[LayerShape, ...]:
        """Runs one token to see which attention layers there are; refuses what does not fit."""
        probe = _Probe()
        zero = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._call(zero, zero, zero, probe)
        name = type(self._model).__name__
        if sorted(probe.shapes) != list(range(len(probe.shapes))) or not probe.shapes:
            raise UnsupportedModel(f"{name}: its attention layers are {sorted(probe.shapes)}")
        if len(probe.shapes) != probe.num_calls:
            raise UnsupportedModel(
                f"{name}: {probe.num_calls} attention calls in {len(probe.shapes)} layers"
            )
        if not probe.is_causal:
            raise UnsupportedModel(f"{name}: its attention is not causal")
        return tuple(probe.shapes[index] for index in sorted(probe.shapes))


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    switch: Any = transformers_logging
    was_on = switch.is_progress_bar_enabled()
    switch.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            switch.enable_progress_bar()


@dataclass(slots=True)
class _Probe:
    """Stands in for a step and records the layers that call it."""

    shapes: dict[int, LayerShape] = field(default_factory=dict)
    num_calls: int = 0
    is_causal: bool = True

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object
    ) -> torch.Tensor:
        self.num_calls += 1
        self.shapes[layer] = LayerShape(k.shape[1], k.shape[2], v.shape[2])
        return q.new_zeros((q.shape[0], q.shape[1], v.shape[2]))


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: query [1, H, T, D], key and value [1, Hkv, T, D]."""
    step = kwargs.get(STEP_ARGUMENT)
    if step is None:
        raise UnsupportedModel(f"{type(module).__name__} does not pass on keyword arguments")
    if attention_mask is not None:
        raise UnsupportedModel(f"{type(module).__name__} makes an attention mask of its own")
    if isinstance(step, _Probe):
        step.is_causal = step.is_causal and getattr(module, "is_causal", True) is not False
    out = step.attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window,
        softcap,
        s_aux,
    )
    return out[None], None
