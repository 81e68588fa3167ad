"""Logits to tokens: penalties, truncation and counter-based random draws, the same in any batch."""

from __future__ import annotations

from .drawer import Drawer, DrawRequest
from .sampler import NO_TOKEN, Sampled, Sampler, SampleRow

__all__ = ["NO_TOKEN", "DrawRequest", "Drawer", "SampleRow", "Sampled", "Sampler"]
