"""Whether a checkpoint's tensors are those of its model of transformers, before any is read.

transformers decides: its own loading, with all that it renames, merges, ties and ignores, runs over
tensors that have the shapes of the headers and no content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from millrace.core.errors import UnsupportedModel
from millrace.engine.loader import open_safetensors
from millrace.engine.quantized import PLAIN_DTYPES
from millrace.engine.quiet_transformers import quiet_transformers
from millrace.engine.tensor_headers import TensorHeader, weight_files

from .misfits import IGNORED, check_dtype, check_none_lacking, check_none_left_over, misshapen

# Any would do for what is asked here.
_DTYPE = torch.bfloat16


def parse_config(folder: Path) -> Any:
    """config.json as transformers reads it; raises `UnsupportedModel` if it does not."""
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    # Each configuration class has its own ways of refusing values.
    except Exception as error:
        raise UnsupportedModel(f"{folder / 'config.json'} is not valid: {error}") from error


def check_generic_headers(config: Any, headers: Iterable[TensorHeader]) -> None:
    """Raises `UnsupportedModel` for a tensor too few, too many, of another shape or no float.

    `config` is the parsed one. What the model's class is known to lack or to leave is allowed.
    """
    shapes = {header.name: header for header in headers}
    plain = {name: header for name, header in shapes.items() if header.dtype in PLAIN_DTYPES}
    model, loaded = _outline(config, plain)
    for name, stored, wanted in sorted(loaded["mismatched_keys"]):
        raise misshapen(name, stored, wanted)
    lacking = _floats_of(model, loaded["missing_keys"])
    if len(plain) < len(shapes):
        whole_model, whole = _outline(config, shapes)
        check_none_left_over(whole["unexpected_keys"])
        if len(_floats_of(whole_model, whole["missing_keys"])) < len(lacking):
            check_dtype(next(header for name, header in shapes.items() if name not in plain))
    check_none_left_over(loaded["unexpected_keys"])
    check_none_lacking(lacking)
    _check_each_has_a_place(model, shapes.values())


def load_generic(config: Any, tensors: Mapping[str, Any], **how: Any) -> tuple[Any, dict[str, Any]]:
    """The model of transformers with these tensors in it, or parts of files; and what it notes.

    Given no folder, transformers reads no other file, no adapter and no code of a checkpoint.
    """
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with quiet_transformers():
        loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            None, config=config, state_dict=dict(tensors), output_loading_info=True, **how
        )
    return loaded


@contextmanager
def stored_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """The tensors of a folder's files, each read when it is needed."""
    with ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for name in weight_files(folder):
            file = stack.enter_context(open_safetensors(folder / name))
            tensors.update((key, file.get_slice(key)) for key in file.keys())  # noqa: SIM118
        yield tensors


def _outline(config: Any, headers: Mapping[str, TensorHeader]) -> tuple[Any, dict[str, Any]]:
    """`load_generic` over tensors of these shapes without content."""
    tensors = {
        name: torch.empty(header.shape, dtype=_DTYPE, device="meta")
        for name, header in headers.items()
    }
    how = {"device_map": {"": "meta"}, "dtype": _DTYPE, "ignore_mismatched_sizes": True}
    try:
        return load_generic(config, tensors, **how)
    # transformers raises what it likes, and tells more in its log only.
    except Exception as error:
        raise UnsupportedModel(
            "tensors that become one of the model's, as those of a layer's experts, are "
            "missing, there twice, or of another shape than config.json says"
        ) from error


def _floats_of(model: Any, names: Iterable[str]) -> list[str]:
    """Those that are weights; counters and the like are not."""
    state = model.state_dict()
    return sorted(name for name in names if state[name].is_floating_point())


def _check_each_has_a_place(model: Any, headers: Iterable[TensorHeader]) -> None:
    """Raises for a second name of the same tensor: transformers would take either."""
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), *IGNORED]
    pattern = re.compile("|".join(f"(?:{each})" for each in ignored))
    stored = sum(header.num_elements for header in headers if not pattern.search(header.name))
    # Tied tensors are one object.
    own = {id(each): each.numel() for each in model.state_dict(keep_vars=True).values()}
    if stored > sum(own.values()):
        raise UnsupportedModel(
            f"its tensors hold {stored - sum(own.values())} numbers more than its model: "
            "some stand there under two names"
        )
