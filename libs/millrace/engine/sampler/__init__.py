"""Logits to tokens: penalties, truncation and counter-based random draws, the same in any batch."""

from __future__ import annotations

from .sampler import Sampled, Sampler, SampleRow

__all__ = ["SampleRow", "Sampled", "Sampler"]
