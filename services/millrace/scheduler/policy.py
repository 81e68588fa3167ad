"""The numbers that steer scheduling decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from millrace.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SchedulerPolicy:
    """Limits and preferences of one scheduler; all of them hold for every worker alike.

    While sequences decode, prefill may lengthen a step to `target_itl_ms`, to up to twice that
    where many wait, or to `max_itl_stretch` times what it takes without where that is longer.
    `ageing_share` k gives every k-th admission to a lower class. A waiting sequence is overtaken at
    most `max_bypasses` times and for `max_bypass_ms`; one is left for another worker for at most
    `placement_patience_ms`. Prefixes of at least `min_awaited_prefix_tokens` that another sequence
    is computing are waited for. A worker takes requests after its first canary, and owes one after
    `canary_every_s` without anything to do; 0: no canaries.
    """

    max_num_batched_tokens: int = 2048
    target_itl_ms: float = 50.0
    max_itl_stretch: float = 2.0
    lease_steps: int = 2
    max_num_waiting: int = 1024
    max_waiting_tokens: int = 1_000_000
    ageing_share: int = 8
    bypass_window: int = 8
    max_bypasses: int = 8
    max_bypass_ms: float = 500.0
    max_candidates: int = 128
    min_awaited_prefix_tokens: int = 128
    placement_patience_ms: float = 250.0
    placement_decode_steps: int = 8
    canary_every_s: float = 0.0
    tenant_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("target_itl_ms", "max_num_waiting", "max_waiting_tokens", "ageing_share"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be over 0", field=name)
        if self.max_num_batched_tokens < 64:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; the least is 64",
                field="max_num_batched_tokens",
            )
        if self.max_itl_stretch < 1:
            raise ConfigError(
                f"max_itl_stretch is {self.max_itl_stretch}; the least is 1",
                field="max_itl_stretch",
            )
        if self.lease_steps < 0:
            raise ConfigError(f"lease_steps is {self.lease_steps}", field="lease_steps")
        if any(weight <= 0 for weight in self.tenant_weights.values()):
            raise ConfigError("a tenant's weight must be over 0", field="tenant_weights")
