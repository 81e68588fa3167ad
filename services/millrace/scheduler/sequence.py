"""A request and its sequences, as the scheduler follows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from millrace.core.request import QueuedRequest
from millrace.core.tokens import FinishReason

from .fairness import TenantAccount
from .prefix import extend_block_hashes, root_hash
from .suspicion import Suspicion


class SequenceStatus(Enum):
    """WAITING → RUNNING → FINISHED, with RUNNING → PREEMPTED → WAITING when its row is taken away.

    PREEMPTED lasts until the plan that released the row has its result: tokens still in flight are
    accepted, and only then does the sequence wait again.
    """

    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class LiveRequest:
    """An accepted request until its last choice has ended."""

    queued: QueuedRequest
    order: tuple[int, int]
    account: TenantAccount
    sequences: list[Sequence] = field(default_factory=list)
    num_unfinished: int = 0
    is_scheduled: bool = False
    is_isolated: bool = False
    is_checked: bool = False
    suspicion: Suspicion = field(default_factory=Suspicion)

    @property
    def request_id(self) -> str:
        """Its id."""
        return self.queued.request_id


@dataclass(slots=True, eq=False)
class Sequence:
    """One token stream; prefill, decode and resumption are all "advance num_computed_tokens".

    `token_ids` is prompt and output; the K/V of the first `num_computed_tokens` is in the cache of
    the worker that runs it. `rank` orders by priority, arrival and choice: the highest is
    preempted first. `is_parked` while a choice waits for the first token of choice 0.
    """

    request: LiveRequest
    choice: int
    token_ids: list[int]
    num_prompt_tokens: int
    rank: tuple[int, int, int, int]
    num_computed_tokens: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    is_parked: bool = False
    num_bypasses: int = 0
    bypassed_since_ns: int = 0
    left_since_ns: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    hash_root: bytes = b""
    hash_seed: bytes | None = None

    @property
    def request_id(self) -> str:
        """Of the request it belongs to."""
        return self.request.queued.request_id

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output accepted so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    def hashes(self, seed: bytes, block_size: int, num_tokens: int) -> list[bytes]:
        """Hashes of at least the full blocks among its first `num_tokens`; kept between calls."""
        if seed != self.hash_seed:
            self.hash_seed = seed
            self.hash_root = root_hash(seed, self.request.queued.tenant)
            self.block_hashes = []
        num_blocks = num_tokens // block_size
        if len(self.block_hashes) < num_blocks:
            extend_block_hashes(
                self.block_hashes, self.hash_root, self.token_ids, block_size, num_blocks
            )
        return self.block_hashes

    def ended_already(self) -> FinishReason:
        """Why a resumed sequence has nothing left to do; NONE where it goes on."""
        queued = self.request.queued
        if not self.num_output_tokens:
            return FinishReason.NONE
        if self.token_ids[-1] in queued.stop_token_ids:
            return FinishReason.STOP
        is_full = self.num_output_tokens >= queued.max_tokens
        return FinishReason.LENGTH if is_full else FinishReason.NONE

    def note_bypass(self, now_ns: int) -> None:
        """Another sequence went first."""
        self.num_bypasses += 1
        self.bypassed_since_ns = self.bypassed_since_ns or now_ns

    def wait_again(self) -> None:
        """Back to waiting, with every token so far to be computed again or found in the cache."""
        self.status = SequenceStatus.WAITING
        self.num_computed_tokens = 0
        self.num_bypasses = self.bypassed_since_ns = self.left_since_ns = 0
