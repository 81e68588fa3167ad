"""A check at load: does a model of the generic route give the same logits over a paged cache?

A model that keeps state of its own between tokens (a convolution, a recurrence, shared K/V) would
answer fluently and wrongly. So the same few tokens go through it once as a whole and once cut up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from millrace.core.errors import UnsupportedModel
from millrace.core.model import ModelInfo
from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission
from millrace.engine.batch import Batch, Work, build_batch
from millrace.engine.kv_cache import PagedCache
from millrace.engine.row import RowTable

from .base import Logits

NUM_TOKENS = 6
# Of the logits' standard deviation. Lower precisions round differently in batches of other shapes.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.3, "float16": 0.1}


def check_cached_equals_whole(
    forward: Callable[[Batch], Logits],
    cache: PagedCache,
    info: ModelInfo,
) -> None:
    """Raises `UnsupportedModel` where a pass over cached tokens differs from a pass over all."""
    num_blocks = -(-NUM_TOKENS // cache.block_size)
    if num_blocks > cache.num_blocks or info.max_model_len <= NUM_TOKENS:
        return
    whole = _last_logits(forward, cache, info, (NUM_TOKENS,))
    cut = _last_logits(forward, cache, info, (NUM_TOKENS - 3, 2, 1))
    difference = float((whole - cut).abs().max() / whole.std().clamp(min=1e-6))
    if not difference <= TOLERANCES[info.dtype]:
        raise UnsupportedModel(
            f"{info.architecture}: over cached tokens its logits differ by {difference:.3g} "
            "standard deviations; it must keep state outside of the KV cache"
        )


def _last_logits(
    forward: Callable[[Batch], Logits],
    cache: PagedCache,
    info: ModelInfo,
    chunks: tuple[int, ...],
) -> torch.Tensor:
    rows = RowTable(1)
    blocks = list(range(-(-NUM_TOKENS // cache.block_size)))
    cache.clear_blocks(blocks)
    row = rows.admit(
        Admission(
            row=0,
            row_epoch=0,
            token_ids=[(7 * index + 3) % info.vocab_size for index in range(NUM_TOKENS)],
            num_prompt_tokens=NUM_TOKENS,
            num_cached_tokens=0,
            choice=0,
            blocks=blocks,
            sampling=SamplingSpec(temperature=0.0),
            stop_token_ids=(),
            max_len=NUM_TOKENS + 1,
        )
    )
    for num_tokens in chunks:
        logits = forward(build_batch([Work(row, num_tokens)], rows, cache.block_size))
        row.num_computed_tokens += num_tokens
    return torch.as_tensor(logits.values).float()
