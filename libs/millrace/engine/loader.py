"""The weights of a checkpoint folder, from safetensors files.

Files are mapped, never unpickled, and no code of a checkpoint is ever run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from millrace.core.errors import UnsupportedModel

from .tensor_headers import weight_files


class Checkpoint:
    """Tensors of a folder by name, handed out in one dtype on one device. Use as a context manager.

    Counts what it has handed out: `num_parameters` elements, `num_bytes` bytes, each tensor once.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self.num_parameters = 0
        self.num_bytes = 0
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        for name in weight_files(folder):
            opened = open_safetensors(folder / name)
            self._files[name] = opened
            self._file_of.update(dict.fromkeys(opened.keys(), name))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.clear()

    def has(self, name: str) -> bool:
        """True where the checkpoint has this tensor."""
        return name in self._file_of

    def are_equal(self, one: str, other: str) -> bool:
        """True where two tensors are the same in `dtype`; none of them counts as handed out."""
        first, second = (self._read(name).to(self.dtype) for name in (one, other))
        return torch.equal(first, second)

    def get(self, name: str) -> torch.Tensor:
        """One tensor; raises `UnsupportedModel` where the checkpoint does not have it."""
        tensor = self._read(name)
        return self._counted(tensor.to(device=self.device, dtype=self.dtype))

    def try_get(self, name: str) -> torch.Tensor | None:
        """One tensor, or None where the checkpoint does not have it."""
        return self.get(name) if self.has(name) else None

    def merged(self, names: Sequence[str]) -> torch.Tensor:
        """Several tensors, one below the other."""
        parts = [self._read(name).to(device=self.device, dtype=self.dtype) for name in names]
        return self._counted(torch.cat(parts))

    def try_merged(self, names: Sequence[str]) -> torch.Tensor | None:
        """`merged`, or None where the checkpoint has not a single one of them."""
        return self.merged(names) if any(map(self.has, names)) else None

    def _read(self, name: str) -> torch.Tensor:
        file = self._file_of.get(name)
        if file is None:
            raise UnsupportedModel(f"{self._folder} has no tensor {name!r}")
        tensor: torch.Tensor = self._files[file].get_tensor(name)
        if not tensor.dtype.is_floating_point:
            raise UnsupportedModel(f"tensor {name!r} is stored as {tensor.dtype}")
        return tensor

    def _counted(self, tensor: torch.Tensor) -> torch.Tensor:
        self.num_parameters += tensor.numel()
        self.num_bytes += tensor.nbytes
        return tensor


def open_safetensors(path: Path) -> Any:
    """A file of tensors, each read when asked for; raises `UnsupportedModel` if it is none."""
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise UnsupportedModel(f"cannot read {path}: {error}") from error
