"""Changes of a checkpoint that make it another model's, or no model's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import torch

from millrace.engine.tensor_headers import TensorHeader

Tensors = dict[str, torch.Tensor]


def put(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.zeros(shape, dtype=dtype)})


def changed_headers(
    headers: list[TensorHeader], chance: random.Random
) -> tuple[list[TensorHeader], str]:
    """The headers after one change, and what it was."""
    index = chance.randrange(len(headers))
    header, others = headers[index], headers[:index] + headers[index + 1 :]
    kind = chance.choice(["lost", "renamed", "more", "cut", "turned", "typed", "twice"])
    if kind == "lost":
        return others, f"{kind} {header}"
    if kind == "more":
        return [*headers, replace(header, name=f"{header.name}_g")], f"{kind} {header}"
    if kind == "twice":
        other = header.name.removeprefix("model.").removeprefix("transformer.")
        return [*headers, replace(header, name=f"model.{other}.x")], f"{kind} {header}"
    if kind == "renamed":
        return [*others, replace(header, name=header.name[:-1])], f"{kind} {header}"
    if kind == "typed":
        dtype = chance.choice(["I8", "U8", "I32", "F8_E4M3", "BOOL"])
        return [*others, replace(header, dtype=dtype)], f"{kind} {header} {dtype}"
    shape = (header.shape[0] - 1, *header.shape[1:])
    if kind == "turned" and len(set(header.shape)) > 1:
        shape = header.shape[::-1]
    return [*others, replace(header, shape=shape)], f"{kind} {header} {shape}"
