"""A worker without a model: rows, blocks and leases as the protocol has them, and nothing else.

It stands in for the engine in tests of everything above it. Its cache keeps, for each slot, a
digest of the whole history up to that position, and every step checks that a row finds exactly its
own history in its blocks: a block that was reused too early, shared wrongly or never computed
shows at once. Its next token is a function of the history alone, so whatever happens on the way
the text must be `expected_output`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from millrace.core.model import ModelInfo
from millrace.core.request import QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission, Fork, RowError, RowToken, StepPlan, StepResult
from millrace.core.tokens import FinishReason, TokenLogprobs

# Room for every id of the small tokenizers, of which few are sampled: some are the stop token.
VOCAB_SIZE = 640
NUM_SAMPLED_IDS = 97
BROKEN = "this row cannot be computed"
_MODULUS = (1 << 61) - 1
_MULTIPLIER = 1_000_003
_MIX = 0x9E3779B97F4A7C15


class ProtocolError(AssertionError):
    """The scheduler asked for something that the protocol does not allow."""


class CorruptCache(AssertionError):
    """A row read K/V that is not its own."""


@dataclass(slots=True)
class _Row:
    admission: Admission
    blocks: list[int]
    histories: list[int]
    num_tokens: int
    num_computed: int
    is_ended: bool = False

    @property
    def is_prefilling(self) -> bool:
        return self.num_tokens == len(self.admission.token_ids)


class ModelWorker:
    """Has the methods of the engine. `step_ns` of its results follows a fixed linear model of time.

    A row whose prompt contains `poison_token_id` fails in the step that would sample its first
    token; one whose tokens contain `broken_token_id` ends alone, in the step that computes it, and
    leaves K/V that is nobody's.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 16,
        max_num_seqs: int = 8,
        max_model_len: int = 256,
        name: str = "model-worker",
        poison_token_id: int | None = None,
        broken_token_id: int | None = None,
        base_ns: int = 5_000_000,
        token_ns: int = 100_000,
    ) -> None:
        self.info = ModelInfo(
            name=name,
            revision="0" * 16,
            dtype="float32",
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(0,),
        )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.progress = 0
        self.most_tokens_in_a_step = 0
        self._poison_token_id = poison_token_id
        self._broken_token_id = broken_token_id
        self._base_ns = base_ns
        self._token_ns = token_ns
        self._plan: StepPlan | None = None
        self._step_id = 0
        self._leased = 0
        self.reset()

    @property
    def num_live_rows(self) -> int:
        """Rows that have not ended."""
        return sum(not row.is_ended for row in self._rows.values())

    @property
    def live_rows(self) -> list[int]:
        """The numbers of those rows."""
        return [number for number, row in self._rows.items() if not row.is_ended]

    @property
    def num_taken_rows(self) -> int:
        """Rows not released, ended ones included."""
        return len(self._rows)

    def reset(self) -> None:
        """Drops all rows; the cache becomes garbage."""
        self._rows: dict[int, _Row] = {}
        self._slots = [-1] * (self.num_blocks * self.block_size)
        self._plan = None

    def execute(self, plan: StepPlan) -> StepResult:
        """Applies a plan and runs its step. Raises `ProtocolError` or `CorruptCache`."""
        if self._plan is not None and plan.plan_id <= self._plan.plan_id:
            raise ProtocolError(f"plan {plan.plan_id} after {self._plan.plan_id}")
        self._plan = plan
        self._leased = 0
        for row in plan.release_rows:
            if self._rows.pop(row, None) is None:
                raise ProtocolError(f"row {row} released, but free")
        for source, target in plan.copy_blocks:
            self._copy_block(source, target)
        for fork in plan.forks:
            self._fork(fork)
        for admission in plan.admissions:
            self._admit(admission)
        for row, block in plan.grants:
            self._row(row).blocks.append(self._checked(block))
        decoding = [row for row, state in self._rows.items() if not state.is_prefilling]
        result = self._open_result(plan)
        self._prefill(plan, result)
        self._decode([row for row in decoding if row not in set(plan.hold_rows)], result)
        return self._close(result)

    def run_lease_step(self) -> StepResult | None:
        """One more decode step of the plan's lease; None where it is used up or no row runs."""
        plan = self._plan
        if plan is None or self._leased >= plan.lease_steps:
            return None
        rows = [
            row
            for row, state in self._rows.items()
            if not state.is_prefilling
            and not state.is_ended
            and not state.admission.sync
            and row not in plan.hold_rows
        ]
        result = self._open_result(plan)
        self._decode(rows, result)
        if not result.num_decode_rows:
            return None
        self._leased += 1
        return self._close(result)

    def _open_result(self, plan: StepPlan) -> StepResult:
        return StepResult(step_id=self._step_id + 1, plan_id=plan.plan_id)

    def _close(self, result: StepResult) -> StepResult:
        self._step_id += 1
        self.progress += 1
        result.step_ns = self._base_ns + self._token_ns * result.num_tokens
        result.forward_ns = result.step_ns
        self.most_tokens_in_a_step = max(self.most_tokens_in_a_step, result.num_tokens)
        return result

    def _admit(self, admission: Admission) -> None:
        row, token_ids = admission.row, admission.token_ids
        if row in self._rows or not 0 <= row < self.max_num_seqs:
            raise ProtocolError(f"row {row} admitted, but not free")
        num_cached = admission.num_cached_tokens
        if num_cached % self.block_size or num_cached >= len(token_ids):
            raise ProtocolError(f"{num_cached} of {len(token_ids)} tokens cached")
        if not len(token_ids) < admission.max_len <= self.info.max_model_len:
            raise ProtocolError(f"max_len {admission.max_len} for {len(token_ids)} tokens")
        blocks = [self._checked(block) for block in admission.blocks]
        histories = _histories(token_ids)
        self._rows[row] = _Row(admission, blocks, histories, len(token_ids), num_cached)
        self._check_cache(self._rows[row])

    def _fork(self, fork: Fork) -> None:
        source = self._row(fork.from_row)
        if fork.to_row in self._rows:
            raise ProtocolError(f"row {fork.to_row} forked to, but not free")
        admission = source.admission
        self._rows[fork.to_row] = _Row(
            Admission(
                row=fork.to_row,
                row_epoch=fork.to_row_epoch,
                token_ids=admission.token_ids,
                num_prompt_tokens=admission.num_prompt_tokens,
                num_cached_tokens=admission.num_cached_tokens,
                choice=fork.choice,
                blocks=fork.blocks,
                sampling=admission.sampling,
                stop_token_ids=admission.stop_token_ids,
                max_len=admission.max_len,
                sync=admission.sync,
            ),
            list(fork.blocks),
            list(source.histories),
            source.num_tokens,
            source.num_computed,
        )

    def _copy_block(self, source: int, target: int) -> None:
        size = self.block_size
        slots = self._slots[source * size : (source + 1) * size]
        self._slots[self._checked(target) * size : (target + 1) * size] = slots

    def _prefill(self, plan: StepPlan, result: StepResult) -> None:
        for row, num_tokens in plan.chunks:
            state = self._row(row)
            if not state.is_prefilling or num_tokens < 1:
                raise ProtocolError(f"chunk of {num_tokens} for row {row}, which is not in prefill")
            end = state.num_computed + num_tokens
            if end > state.num_tokens or end > len(state.blocks) * self.block_size:
                raise ProtocolError(
                    f"chunk of row {row} ends at {end}, beyond its tokens or blocks"
                )
            if state.is_ended:
                continue
            begin = state.num_computed
            self._compute(state, end)
            result.num_tokens += num_tokens
            if self._broken_token_id in state.admission.token_ids[begin:end]:
                state.is_ended = True
                self._spoil(state, begin)
                result.row_errors.append(RowError(row, BROKEN))
            elif end == state.num_tokens and self._is_poisoned(state.admission):
                state.is_ended = True
                result.failed_rows.append(row)
                result.failure = "poisoned prompt"
            elif end == state.num_tokens:
                self._sample(row, state, result)

    def _spoil(self, state: _Row, begin: int) -> None:
        for position in range(begin, state.num_computed):
            block = state.blocks[position // self.block_size]
            self._slots[block * self.block_size + position % self.block_size] = -1

    def _is_poisoned(self, admission: Admission) -> bool:
        return self._poison_token_id in admission.token_ids[: admission.num_prompt_tokens]

    def _decode(self, rows: Sequence[int], result: StepResult) -> None:
        for row in rows:
            state = self._rows[row]
            if state.is_ended:
                continue
            if len(state.blocks) * self.block_size < state.num_tokens:
                result.starved_rows.append(row)
                continue
            self._compute(state, state.num_tokens)
            self._sample(row, state, result)
            result.num_tokens += 1
            result.num_decode_rows += 1

    def _compute(self, state: _Row, end: int) -> None:
        for position in range(state.num_computed, end):
            block = state.blocks[position // self.block_size]
            slot = block * self.block_size + position % self.block_size
            self._slots[slot] = state.histories[position + 1]
        state.num_computed = end
        self._check_cache(state)

    def _sample(self, row: int, state: _Row, result: StepResult) -> None:
        admission = state.admission
        token_id = next_token(
            state.histories[-1],
            state.num_tokens - admission.num_prompt_tokens,
            admission.sampling,
            admission.choice,
            admission.stop_token_ids,
        )
        state.num_tokens += 1
        state.histories.append(_extend(state.histories[-1], token_id))
        finish = FinishReason.NONE
        if token_id in admission.stop_token_ids:
            finish = FinishReason.STOP
        elif state.num_tokens >= admission.max_len:
            finish = FinishReason.LENGTH
        state.is_ended = finish is not FinishReason.NONE
        logprobs = None if admission.sampling.top_logprobs is None else TokenLogprobs(-1.0)
        result.tokens.append(RowToken(row, admission.row_epoch, token_id, finish, logprobs))

    def _check_cache(self, state: _Row) -> None:
        size = self.block_size
        for index in range(-(-state.num_computed // size)):
            begin, end = index * size, min((index + 1) * size, state.num_computed)
            slot = state.blocks[index] * size
            if self._slots[slot : slot + end - begin] != state.histories[begin + 1 : end + 1]:
                raise CorruptCache(
                    f"row {state.admission.row}: block {state.blocks[index]} does not hold its "
                    f"tokens {begin} to {end}"
                )

    def _row(self, row: int) -> _Row:
        if row not in self._rows:
            raise ProtocolError(f"row {row} is named, but free")
        return self._rows[row]

    def _checked(self, block: int) -> int:
        if not 0 <= block < self.num_blocks:
            raise ProtocolError(f"there is no block {block}")
        return block


def next_token(
    history: int,
    num_output_tokens: int,
    sampling: SamplingSpec,
    choice: int,
    stop_token_ids: Sequence[int],
) -> int:
    """The token that follows a history; depends on seed and choice unless greedy."""
    draw = 0 if sampling.is_greedy else (sampling.seed * 31 + choice + 1) * _MIX
    mixed = ((history ^ draw) * _MIX) % (1 << 64)
    token_id = (mixed >> 20) % NUM_SAMPLED_IDS
    while num_output_tokens < sampling.min_tokens and token_id in stop_token_ids:
        token_id = (token_id + 1) % NUM_SAMPLED_IDS
    return token_id


def expected_output(
    request: QueuedRequest, choice: int = 0, *, max_model_len: int = 256
) -> tuple[list[int], FinishReason]:
    """What a model worker must give for one choice, however it is scheduled."""
    history = _histories(request.prompt_token_ids)[-1]
    max_len = min(len(request.prompt_token_ids) + request.max_tokens, max_model_len)
    output: list[int] = []
    while True:
        token_id = next_token(
            history, len(output), request.sampling, choice, request.stop_token_ids
        )
        output.append(token_id)
        history = _extend(history, token_id)
        if token_id in request.stop_token_ids:
            return output, FinishReason.STOP
        if len(request.prompt_token_ids) + len(output) >= max_len:
            return output, FinishReason.LENGTH


def _extend(history: int, token_id: int) -> int:
    return (history * _MULTIPLIER + token_id + 1) % _MODULUS


def _histories(token_ids: Sequence[int]) -> list[int]:
    """Digests of the first 0, 1, ... len(token_ids) tokens."""
    histories = [1]
    for token_id in token_ids:
        histories.append(_extend(histories[-1], token_id))
    return histories
