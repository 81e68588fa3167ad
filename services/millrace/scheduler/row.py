"""The scheduler's mirror of a row, and of a plan on its way."""

from __future__ import annotations

from dataclasses import dataclass, field

from millrace.core.step import StepPlan

from .sequence import Sequence


@dataclass(slots=True, eq=False)
class Row:
    """What the scheduler knows of one use of a worker's row.

    `num_tokens` are applied tokens, `num_scheduled_tokens` those of the first
    `num_admitted_tokens` that plans have sent through prefill. `granted_tokens` is the room in
    `blocks`. `first_step` counts the worker's steps issued before the plan in which the row first
    sampled, `first_plan` is that plan.
    `num_held` counts the plans on their way that hold the row; such plans have no lease.
    `has_failed` from a step on that failed, as a whole or for this row: chunks behind it compute
    something else than was planned.
    """

    row: int
    epoch: int
    sequence: Sequence
    blocks: list[int]
    max_len: int
    num_tokens: int
    num_admitted_tokens: int
    num_scheduled_tokens: int
    granted_tokens: int
    num_cached_blocks: int
    first_step: int = 0
    first_plan: int = 0
    num_held: int = 0
    is_leaving: bool = False
    has_failed: bool = False

    @property
    def is_prefilling(self) -> bool:
        """True until a plan carries its last chunk."""
        return self.num_scheduled_tokens < self.num_admitted_tokens


@dataclass(slots=True, eq=False)
class IssuedPlan:
    """A plan, from its making until the next one's result.

    `first_step` is the number of steps issued before it; it may run 1 + lease_steps more.
    `num_decode_rows` counts the rows sure to decode in it; `is_next` says that none is before it.
    `kv_tokens` is the context of those rows, `num_pairs` what its chunks add to attention.
    `is_canary`: it has nothing but a canary in it.
    """

    plan: StepPlan
    first_step: int
    chunks: list[tuple[Row, int]] = field(default_factory=list)
    released: list[Row] = field(default_factory=list)
    held: list[Row] = field(default_factory=list)
    num_decode_rows: int = 0
    kv_tokens: int = 0
    num_pairs: int = 0
    predicted_ms: float = 0.0
    is_next: bool = False
    is_canary: bool = False
    has_result: bool = False

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens in this plan's step."""
        return sum(num_tokens for _, num_tokens in self.chunks)

    @property
    def does_something(self) -> bool:
        """True where the worker has to see this plan.

        A plan that only holds rows settles whether an earlier lease runs on; it is needed where no
        other result will.
        """
        plan = self.plan
        changes = plan.release_rows or plan.grants or plan.chunks
        return self.num_decode_rows > 0 or bool(changes) or (bool(self.held) and self.is_next)
