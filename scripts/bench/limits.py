"""What a piece of work could take at best on a machine: the roofline."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rates:
    """What the machine reaches in this minute, all cores together."""

    read_gb_per_s: float
    multiply_tflops: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a piece of work must read from memory, and multiply: a multiplication with its
    addition counts as two operations."""

    num_bytes: float
    num_flops: float

    def read_s(self, rates: Rates) -> float:
        """Seconds to read its bytes."""
        return self.num_bytes / (rates.read_gb_per_s * 1e9)

    def multiply_s(self, rates: Rates) -> float:
        """Seconds to multiply."""
        return self.num_flops / (rates.multiply_tflops * 1e12)

    def limit_s(self, rates: Rates) -> float:
        """The least it can take: reading and multiplying overlap, the longer of them decides."""
        return max(self.read_s(rates), self.multiply_s(rates))

    def bound(self, rates: Rates) -> str:
        """Which of the two decides: "read" or "multiply"."""
        return "read" if self.read_s(rates) >= self.multiply_s(rates) else "multiply"


def percent(limit_s: float, took_s: float) -> float:
    """How near `took_s` comes to its limit. Raises ValueError for a time that cannot be."""
    if took_s <= 0:
        raise ValueError(f"{took_s} s is no time")
    return round(100 * limit_s / took_s, 1)


def speed_figures(cost: Cost, took_s: float, rates: Rates) -> dict[str, float | str]:
    """The columns that every table of kernels and of the engine ends with."""
    return {
        "gb_per_s": round(cost.num_bytes / took_s / 1e9, 2),
        "tflops": round(cost.num_flops / took_s / 1e12, 3),
        "read_gb_per_s": round(rates.read_gb_per_s, 2),
        "multiply_tflops": round(rates.multiply_tflops, 3),
        "read_share_percent": percent(cost.read_s(rates), took_s),
        "limit_share_percent": percent(cost.limit_s(rates), took_s),
        "bound": cost.bound(rates),
    }
