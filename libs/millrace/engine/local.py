"""Generation without services: a small synchronous loop over an engine.

It allocates blocks itself. All prompts run together, as many as rows and blocks allow; the rest
wait their turn. Blocks for the longest output are taken at admission: nothing is ever preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from millrace.core.errors import ContextLengthExceeded, InternalError
from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission, RowToken, StepPlan
from millrace.core.tokens import FinishReason, TokenLogprobs

from .engine import Engine

DEFAULT_CHUNK_TOKENS = 512

TokenCallback = Callable[[int, RowToken], None]


@dataclass(frozen=True, slots=True)
class LocalRequest:
    """One prompt; the model's end-of-text ids stop it unless `stop_token_ids` says otherwise."""

    prompt_token_ids: Sequence[int]
    max_tokens: int
    sampling: SamplingSpec = field(default_factory=lambda: SamplingSpec(temperature=0.0))
    stop_token_ids: tuple[int, ...] | None = None
    choice: int = 0


@dataclass(slots=True)
class LocalOutput:
    """What came of one request."""

    token_ids: list[int] = field(default_factory=list)
    finish: FinishReason = FinishReason.NONE
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(slots=True)
class _Seat:
    index: int
    request: LocalRequest
    blocks: list[int]
    prefill_left: int


class LocalGenerator:
    """Owns the engine while it generates: rows of anyone else are dropped."""

    def __init__(self, engine: Engine, *, chunk_tokens: int = DEFAULT_CHUNK_TOKENS) -> None:
        self._engine = engine
        self._chunk_tokens = chunk_tokens
        self._plan_id = 0
        self._row_epoch = 0

    def generate(
        self, requests: Sequence[LocalRequest], on_token: TokenCallback | None = None
    ) -> list[LocalOutput]:
        """Runs all requests to their end; `on_token(index of the request, token)` as they come.

        Raises `ContextLengthExceeded` for a request that can never fit, `InternalError` where one
        cannot be computed.
        """
        for request in requests:
            self._check(request)
        self._engine.reset()
        outputs = [LocalOutput() for _ in requests]
        waiting = deque(enumerate(requests))
        seats: dict[int, _Seat] = {}
        free_blocks = list(range(self._engine.num_blocks))
        finished: list[int] = []
        try:
            while waiting or len(seats) > len(finished):
                plan = self._plan(finished, waiting, seats, free_blocks)
                finished = self._apply(plan, seats, outputs, on_token)
        finally:
            self._engine.reset()
        return outputs

    def _check(self, request: LocalRequest) -> None:
        prompt, limit = len(request.prompt_token_ids), self._engine.info.max_model_len
        if prompt < 1 or request.max_tokens < 1 or prompt + request.max_tokens > limit:
            raise ContextLengthExceeded(
                f"prompt of {prompt} tokens and max_tokens {request.max_tokens}: "
                f"both must be at least 1, and together at most {limit}",
                field="max_tokens",
            )

    def _plan(
        self,
        finished: list[int],
        waiting: deque[tuple[int, LocalRequest]],
        seats: dict[int, _Seat],
        free_blocks: list[int],
    ) -> StepPlan:
        self._plan_id += 1
        plan = StepPlan(plan_id=self._plan_id, release_rows=finished)
        for row in finished:
            free_blocks += seats.pop(row).blocks
        free_rows = [row for row in range(self._engine.max_num_seqs) if row not in seats]
        while waiting and free_rows:
            index, request = waiting[0]
            max_len = len(request.prompt_token_ids) + request.max_tokens
            num_blocks = -(-max_len // self._engine.block_size)
            if num_blocks > len(free_blocks):
                break
            waiting.popleft()
            blocks = [free_blocks.pop() for _ in range(num_blocks)]
            row = free_rows.pop(0)
            seats[row] = _Seat(index, request, blocks, len(request.prompt_token_ids))
            plan.admissions.append(self._admission(row, seats[row], max_len))
        budget = self._chunk_tokens
        for row, seat in seats.items():
            num_tokens = min(budget, seat.prefill_left)
            if num_tokens:
                plan.chunks.append((row, num_tokens))
                seat.prefill_left -= num_tokens
                budget -= num_tokens
        return plan

    def _admission(self, row: int, seat: _Seat, max_len: int) -> Admission:
        request = seat.request
        self._row_epoch += 1
        stop = request.stop_token_ids
        return Admission(
            row=row,
            row_epoch=self._row_epoch,
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
            num_cached_tokens=0,
            choice=request.choice,
            blocks=seat.blocks,
            sampling=request.sampling,
            stop_token_ids=self._engine.info.eos_token_ids if stop is None else stop,
            max_len=max_len,
        )

    def _apply(
        self,
        plan: StepPlan,
        seats: dict[int, _Seat],
        outputs: list[LocalOutput],
        on_token: TokenCallback | None,
    ) -> list[int]:
        """Runs the plan; returns the rows that ended in it."""
        result = self._engine.execute(plan)
        for error in result.row_errors:
            raise InternalError(error.reason)
        if not result.num_tokens:
            raise InternalError(f"plan {plan.plan_id} moved no row")
        for token in result.tokens:
            index = seats[token.row].index
            output = outputs[index]
            output.token_ids.append(token.token_id)
            output.finish = token.finish
            if token.logprobs is not None:
                output.logprobs.append(token.logprobs)
            if on_token is not None:
                on_token(index, token)
        return [token.row for token in result.tokens if token.finish is not FinishReason.NONE]
