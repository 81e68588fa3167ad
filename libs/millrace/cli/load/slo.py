"""The service level that makes an answer count as good."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.core.errors import ConfigError

from .outcome import Outcome

NAMES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in milliseconds; None sets none."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def is_met(self, outcome: Outcome) -> bool:
        """True for an answer within every limit."""
        seen = ((self.ttft_ms, outcome.ttft_s), (self.tpot_ms, outcome.tpot_s))
        pairs = (*seen, (self.e2e_ms, outcome.e2e_s))
        return outcome.is_answered and all(
            limit_ms is None or seconds is None or seconds * 1000 <= limit_ms
            for limit_ms, seconds in pairs
        )


def parse_slo(text: str) -> Slo:
    """From `ttft=500,tpot=50,e2e=5000`. Raises ConfigError naming the part that is wrong."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in NAMES:
            raise ConfigError(f"slo: {name!r} is none of {', '.join(NAMES)}", field="slo")
        try:
            limits[f"{name}_ms"] = float(value)
        except ValueError as exc:
            raise ConfigError(f"slo: {part.strip()!r} has no milliseconds", field="slo") from exc
        if not 0 < limits[f"{name}_ms"] < float("inf"):
            raise ConfigError(f"slo: {part.strip()!r} is not greater than 0", field="slo")
    return Slo(**limits)
