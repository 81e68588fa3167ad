"""Rotary position embeddings: inverse frequencies by the kinds of scaling the native route knows.

RoPE: Su et al., 2021 (arXiv 2104.09864). "linear" divides all frequencies by the factor; "llama3"
is the scaling by wavelength of Llama 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

ROPE_TYPES = ("default", "linear", "llama3")


def inverse_frequencies(parameters: Mapping[str, Any], head_dim: int) -> torch.Tensor:
    """Radians per position of each dimension pair, float32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (float(parameters["rope_theta"]) ** exponents)
    kind = parameters.get("rope_type", "default")
    if kind == "linear":
        return frequencies / float(parameters["factor"])
    if kind == "llama3":
        return _scale_by_wavelength(frequencies, parameters)
    return frequencies


def _scale_by_wavelength(frequencies: torch.Tensor, parameters: Mapping[str, Any]) -> torch.Tensor:
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    trained = float(parameters["original_max_position_embeddings"])
    wavelengths = 2 * math.pi / frequencies
    blend = (trained / wavelengths - low) / (high - low)
    between = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = torch.where(wavelengths > trained / low, frequencies / factor, between)
    return torch.where(wavelengths < trained / high, frequencies, scaled)


def rotation(
    positions: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors for `rotate`: cos and signed sin, [T, 1, head_dim] each."""
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    cos = torch.cat((cos, cos), -1)
    sin = torch.cat((-sin, sin), -1)
    return cos.to(dtype)[:, None], sin.to(dtype)[:, None]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates x [T, heads, head_dim]; dimension i pairs with i + head_dim / 2."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
