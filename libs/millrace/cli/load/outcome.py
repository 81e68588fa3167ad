"""What a client saw of one request, and of a whole load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

# Requests that the end of the load cut short; they are neither answers nor errors.
REASON_CUT_SHORT = "cut_short"


@dataclass(slots=True)
class Outcome:
    """One request. Times are seconds of one monotonic clock; each event brought text."""

    started_s: float
    ended_s: float = 0.0
    event_times_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    request_id: str = ""
    # As the server names it; empty if it does not.
    model: str = ""
    # Empty for an answer that came to its end.
    error: str = ""
    late_s: float = 0.0

    @property
    def is_answered(self) -> bool:
        """True for an answer that came to its end."""
        return not self.error

    @property
    def e2e_s(self) -> float:
        """Sent to the end."""
        return self.ended_s - self.started_s

    @property
    def ttft_s(self) -> float:
        """Sent to first text; to the end where there was no text."""
        first_s = self.event_times_s[0] if self.event_times_s else self.ended_s
        return first_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None for answers of one token."""
        if self.num_output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.num_output_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Between one text and the next."""
        times = self.event_times_s
        return [after - before for before, after in zip(times, times[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Load:
    """All requests of one run; CPU time is the client's own."""

    protocol: str
    num_streams: int
    elapsed_s: float
    client_cpu_s: float
    outcomes: Sequence[Outcome]
    was_interrupted: bool = False

    @property
    def answered(self) -> list[Outcome]:
        """The requests whose answer came to its end."""
        return [outcome for outcome in self.outcomes if outcome.is_answered]

    @property
    def num_output_tokens(self) -> int:
        """Of the answered ones."""
        return sum(outcome.num_output_tokens for outcome in self.answered)

    @property
    def model(self) -> str:
        """The model that answered; empty if no server named one."""
        return next((outcome.model for outcome in self.outcomes if outcome.model), "")

    def errors(self) -> dict[str, int]:
        """Count by reason, the most frequent first."""
        reasons = Counter(outcome.error for outcome in self.outcomes if outcome.error)
        return dict(reasons.most_common())
