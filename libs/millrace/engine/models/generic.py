"""The generic route: any plain decoder of transformers, with our paged attention inside its layers.

transformers lets attention be replaced by name (`AttentionInterface`). A name it knows no mask for
also switches its mask building off, which is what lets rows of one flattened batch share a pass:
positions come with the batch, and causality is the backend's business. The step travels through the
model's own keyword arguments.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from millrace.core.errors import UnsupportedModel
from millrace.engine.attention.base import AttentionStep
from millrace.engine.batch import Batch
from millrace.engine.tensors import to_device

from .base import Logits
from .exact_length import find_exactness
from .generic_tensors import load_generic, stored_tensors
from .soundness import sound_rows
from .watch import STEP_ARGUMENT

if TYPE_CHECKING:
    from millrace.engine.kernels.cpu.library import Kernels

_READS_WEIGHT = re.compile(r"\bself(?:\.\w+)*\.(\w+)\.weight\b")
# No part of the name may be one that transformers treats specially (flash, sdpa, flex, paged).
ATTENTION_NAME = "millrace"


class GenericModel:
    """A transformers model behind our `Model`; computes logits only for rows that sample.

    `exactness.length` is the number of tokens up to which it may be served, at most `length`;
    `is_untied` says that its head is not its embedding though config.json calls them tied.
    """

    def __init__(
        self, folder: Path, config: Any, dtype: torch.dtype, device: torch.device, length: int
    ) -> None:
        with stored_tensors(folder) as tensors:
            model, _ = load_generic(
                config, tensors, dtype=dtype, attn_implementation=ATTENTION_NAME
            )
        self._model = model.eval().to(device)
        self._device = device
        self.name = type(model).__name__
        if "logits_to_keep" not in inspect.signature(self._model.forward).parameters:
            raise UnsupportedModel(f"{self.name} cannot compute logits for chosen tokens only")
        head = self._model.get_output_embeddings().weight
        self.vocab_size = int(head.shape[0])
        is_tied = bool(model._tied_weights_keys) and getattr(config, "tie_word_embeddings", False)
        self.is_untied = is_tied and head is not self._model.get_input_embeddings().weight
        self._hidden: torch.Tensor | None = None
        if self._model.base_model is not self._model:
            self._model.base_model.register_forward_hook(self._note_hidden)
        parameters = list(self._model.parameters())
        self.num_parameters = sum(parameter.numel() for parameter in parameters)
        self.weight_bytes = sum(parameter.nbytes for parameter in parameters)
        self.exactness = find_exactness(self, length, config.to_dict())
        self.layers = self.exactness.layers

    def pack_linears(self, kernels: Kernels, kind: str, report: Callable[[str], None]) -> None:
        """Puts the kernels' packed products in the place of the model's linear layers."""
        from millrace.engine.kernels.cpu.packed_linear import pack_linears

        report(f"packing the weights as {kind} for {kernels.path}")
        head = self._model.get_output_embeddings()
        but = _layers_read_by_code(self._model)
        self.weight_bytes -= pack_linears(self._model, kernels, kind, head, but)

    @torch.inference_mode()
    def forward(self, batch: Batch, step: AttentionStep) -> Logits:
        """See `Model.forward`."""
        arrays = (batch.input_ids, batch.positions, batch.sample_indices)
        input_ids, positions, keep = (to_device(array, self._device) for array in arrays)
        logits = self._call(input_ids, positions, keep, step)
        is_sound = None if self._hidden is None else sound_rows(self._hidden, batch)
        return Logits(logits, is_sound=is_sound)

    @torch.inference_mode()
    def run(
        self, attention: str, token_ids: Sequence[int], positions: Sequence[int], step: Any
    ) -> torch.Tensor:
        """All logits [T, vocab_size] of one pass with the attention registered by that name."""
        arrays = (token_ids, positions, range(len(token_ids)))
        input_ids, places, keep = (torch.tensor(array, device=self._device) for array in arrays)
        self._model.set_attn_implementation(attention)
        try:
            with refused_if_it_fails(self.name):
                return self._call(input_ids, places, keep, step)
        finally:
            self._model.set_attn_implementation(ATTENTION_NAME)

    @contextmanager
    def tainted(self, tokens: Sequence[int]) -> Iterator[None]:
        """While it lasts, the embeddings of these tokens of each pass are NaN."""

        def spoil(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            where = torch.tensor(tokens, device=output.device)
            return output.index_fill(1, where, torch.nan)

        hook = self._model.get_input_embeddings().register_forward_hook(spoil)
        try:
            yield
        finally:
            hook.remove()

    def _note_hidden(self, module: Any, inputs: Any, output: Any) -> None:
        """Keeps the last layer's output for all tokens [T, H], of which `_call` sees some."""
        self._hidden = output[0][0]

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


def _layers_read_by_code(model: torch.nn.Module) -> set[str]:
    """Names of layers whose weights the model's code reads itself, as some routers' do."""
    files = {type(module).__module__ for module in model.modules()}
    sources = [
        inspect.getsource(sys.modules[name]) for name in files if name.startswith("transformers.")
    ]
    return {name for source in sources for name in _READS_WEIGHT.findall(source)}


@contextmanager
def refused_if_it_fails(name: str) -> Iterator[None]:
    """Turns what the code of a model raises at load into `UnsupportedModel`."""
    try:
        yield
    except (UnsupportedModel, MemoryError, torch.OutOfMemoryError):
        raise
    # The code is foreign: whatever it raises, it would raise for a request too.
    except Exception as error:
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UnsupportedModel(f"{name}: its code fails on a few tokens: {what}") from error


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
    if attention_mask is not None:
        raise UnsupportedModel(f"{type(module).__name__} makes an attention mask of its own")
    out = kwargs[STEP_ARGUMENT].attend(
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


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)
