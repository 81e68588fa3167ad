"""What is said of tensors that are not those of the model that config.json describes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from millrace.core.errors import UnsupportedModel
from millrace.engine.quantized import PLAIN_DTYPES
from millrace.engine.tensor_headers import TensorHeader

# Left over in many older checkpoints; computed from config.json, or counted, by every model.
IGNORED = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
UNTIED = "config.json ties the head to the embedding, but the two differ: both are used"
_IGNORED = re.compile("|".join(IGNORED))


def is_ignored(name: str) -> bool:
    """True for a tensor that may stand in any checkpoint and is never read."""
    return _IGNORED.search(name) is not None


def check_dtype(header: TensorHeader) -> None:
    """Raises `UnsupportedModel` for numbers that are no plain ones."""
    if header.dtype not in PLAIN_DTYPES:
        raise UnsupportedModel(
            f"tensor {header.name!r} is stored as {header.dtype}, no plain number"
        )


def misshapen(
    name: str, stored: Sequence[int], wanted: Sequence[int], settings: str = ""
) -> UnsupportedModel:
    """For a tensor of another shape than the `wanted` one, which `settings` of config.json make."""
    told = f", which is {settings}" if settings else ""
    return UnsupportedModel(
        f"tensor {name!r} has the shape {list(stored)}; config.json says {list(wanted)}{told}"
    )


def check_none_left_over(unexpected: Iterable[str]) -> None:
    """Raises `UnsupportedModel` for tensors that the model does not have."""
    if names := sorted(unexpected):
        raise UnsupportedModel(
            f"it has {_named(names)}, which the model of its config.json does not have"
        )


def check_none_lacking(missing: Iterable[str]) -> None:
    """Raises `UnsupportedModel` for tensors of the model that are not there."""
    if names := sorted(missing):
        raise UnsupportedModel(f"it lacks {_named(names)}")


def _named(names: list[str]) -> str:
    if len(names) == 1:
        return f"the tensor {names[0]!r}"
    return f"{len(names)} tensors, {names[0]!r} first"
