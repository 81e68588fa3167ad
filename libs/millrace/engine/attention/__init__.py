"""Attention backends by name. A backend's module is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from millrace.core.errors import ConfigError

if TYPE_CHECKING:
    from millrace.engine.kv_cache import PagedCache

    from .base import AttentionBackend


def _create_torch(cache: Any) -> AttentionBackend:
    from .torch_attention import TorchAttention

    return TorchAttention(cache)


def _create_cpu(cache: Any) -> AttentionBackend:
    from .cpu_attention import CpuAttention

    return CpuAttention(cache)


# Each takes the kind of cache that is made for its backend.
BACKENDS: dict[str, Callable[[Any], AttentionBackend]] = {
    "cpu": _create_cpu,
    "torch": _create_torch,
}


def create_attention(name: str, cache: PagedCache) -> AttentionBackend:
    """The backend called `name` over `cache`; raises `ConfigError` for a name that is not there."""
    factory = BACKENDS.get(name)
    if factory is None:
        known = ", ".join(sorted(BACKENDS))
        raise ConfigError(f"attention backend is {name!r}; known are {known}", field="backend")
    return factory(cache)
