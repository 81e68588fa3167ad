"""Which stored tensors are a model's embedding and its head: one, or two.

As transformers decides it (`tie_weights` of modeling_utils): of a tied model either name will do,
and two tensors that differ are both used, whatever config.json says.
"""

from __future__ import annotations

from millrace.engine.loader import Checkpoint

from .llama_spec import LlamaSpec
from .llama_tensors import EMBEDDING, HEAD


def embedding_and_head(checkpoint: Checkpoint, spec: LlamaSpec) -> tuple[str, str]:
    """The names of the tensors to read, the same one twice where the head is the embedding."""
    if not spec.tied:
        return EMBEDDING, HEAD
    if not checkpoint.has(EMBEDDING):
        return HEAD, HEAD
    if not checkpoint.has(HEAD) or checkpoint.are_equal(EMBEDDING, HEAD):
        return EMBEDDING, EMBEDDING
    return EMBEDDING, HEAD
