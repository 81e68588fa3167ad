"""Logits to tokens: penalties, truncation and counter-based random draws, the same in any batch."""

from __future__ import annotations

from .drawer import Drawer, DrawRequest
from .sampler import Sampled, Sampler, SampleRow

__all__ = ["DrawRequest", "Drawer", "SampleRow", "Sampled", "Sampler"]
