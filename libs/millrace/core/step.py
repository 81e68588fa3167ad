"""What scheduler and engine agree on: the plan of one step, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import InternalError
from .sampling import SamplingSpec
from .tokens import FinishReason, TokenLogprobs

PROTOCOL_VERSION = 1
# The row epoch of canaries: sequences of one token that prove that a worker can generate.
CANARY_ROW_EPOCH = 0


class PlanRefused(InternalError):
    """A plan does not fit the rows as they are: scheduler and engine are out of step."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence takes a row.

    `token_ids` is the prompt and any output so far; the K/V of its first `num_cached_tokens` (a
    multiple of the block size, at most len(token_ids) - 1) already lies in `blocks`. The row is
    in prefill until chunks have brought it to the end of `token_ids`, where it samples; from then
    on it decodes one token in every step. It ends when prompt and output have `max_len` tokens.
    """

    row: int
    row_epoch: int
    token_ids: list[int]
    num_prompt_tokens: int
    num_cached_tokens: int
    choice: int
    blocks: list[int]
    sampling: SamplingSpec
    stop_token_ids: tuple[int, ...]
    max_len: int
    sync: bool = False
    traceparent: str = ""


def canary_admission(row: int, block: int) -> Admission:
    """A prompt of one token that ends with the one token it samples."""
    return Admission(
        row=row,
        row_epoch=CANARY_ROW_EPOCH,
        token_ids=[0],
        num_prompt_tokens=1,
        num_cached_tokens=0,
        choice=0,
        blocks=[block],
        sampling=SamplingSpec(temperature=0.0),
        stop_token_ids=(),
        max_len=2,
    )


@dataclass(frozen=True, slots=True)
class Fork:
    """A live row continues as a second one with block table `blocks`, sharing its full blocks.

    A partly filled last block is copied by `copy_blocks` of the same plan.
    """

    from_row: int
    to_row: int
    to_row_epoch: int
    choice: int
    blocks: list[int]


@dataclass(slots=True)
class StepPlan:
    """One step, as a difference to the last one.

    Order inside: release, copy, fork, admit, grant, execute. Rows that are past their prefill
    decode without being named, unless held. `grants` are (row, block) pairs, `copy_blocks`
    (from, to) pairs, `chunks` (row, number of tokens) pairs for rows in prefill.
    """

    plan_id: int
    release_rows: list[int] = field(default_factory=list)
    copy_blocks: list[tuple[int, int]] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    hold_rows: list[int] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    grants: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[tuple[int, int]] = field(default_factory=list)
    lease_steps: int = 0


@dataclass(frozen=True, slots=True)
class RowToken:
    """A token that a row sampled; `finish` is set on the row's last one."""

    row: int
    row_epoch: int
    token_id: int
    finish: FinishReason = FinishReason.NONE
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class RowError:
    """A row has ended without a token, alone; `reason` is for its client."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A step is under way; `count` rises with every layer computed."""

    count: int


@dataclass(slots=True)
class StepResult:
    """What one step did. `starved_rows` were live but had no block for their next token.

    `failed_rows` took part in a step that failed as a whole, for `failure`; `row_errors` are rows
    that ended by themselves in a step that did not.
    """

    step_id: int
    plan_id: int
    tokens: list[RowToken] = field(default_factory=list)
    starved_rows: list[int] = field(default_factory=list)
    failed_rows: list[int] = field(default_factory=list)
    failure: str = ""
    row_errors: list[RowError] = field(default_factory=list)
    num_tokens: int = 0
    num_decode_rows: int = 0
    started_unix_ns: int = 0
    step_ns: int = 0
    forward_ns: int = 0
    sample_ns: int = 0

    @property
    def why_no_token(self) -> str:
        """Of a step that should have brought one."""
        reasons = [self.failure, *(error.reason for error in self.row_errors), "no token came"]
        return next(filter(None, reasons))
