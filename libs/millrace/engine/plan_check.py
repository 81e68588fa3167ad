"""Is a plan sound? Checked before any of it is applied, so that a refused plan changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.core.step import Admission, PlanRefused, RowError, StepPlan

from .row import RowTable


def check_plan(plan: StepPlan, rows: RowTable, num_blocks: int, block_size: int) -> None:
    """Raises `PlanRefused` where the plan names seats, blocks or tokens that cannot be."""
    num_seats = len(rows.rows)
    taken = {row.index for row in rows} - set(plan.release_rows)
    blocks = [block for pair in plan.copy_blocks for block in pair]
    for fork in plan.forks:
        if fork.from_row not in taken:
            raise _error(plan, f"forks row {fork.from_row}, which is free")
        _take(plan, fork.to_row, taken, num_seats)
        blocks += fork.blocks
    admitted: dict[int, int] = {}
    for admission in plan.admissions:
        _take(plan, admission.row, taken, num_seats)
        _check_admission(plan, admission, block_size)
        admitted[admission.row] = len(admission.token_ids) - admission.num_cached_tokens
        blocks += admission.blocks
    for row, block in plan.grants:
        if row not in taken:
            raise _error(plan, f"grants block {block} to row {row}, which is free")
        blocks.append(block)
    _check_blocks(plan, blocks, num_blocks)
    _check_chunks(plan, rows, admitted, {fork.to_row: fork.from_row for fork in plan.forks})


def foreign_tokens(plan: StepPlan, vocab_size: int) -> list[RowError]:
    """The admissions that name a token which the model does not have, each by its row.

    Such a row ends alone: the plan can be applied, only that row cannot be computed.
    """
    return [
        RowError(admission.row, f"there is no token {token_id}; there are 0 to {vocab_size - 1}")
        for admission in plan.admissions
        if (token_id := _foreign_token(admission.token_ids, vocab_size)) is not None
    ]


def _foreign_token(token_ids: Sequence[int], vocab_size: int) -> int | None:
    if min(token_ids) >= 0 and max(token_ids) < vocab_size:
        return None
    return next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)


def _take(plan: StepPlan, row: int, taken: set[int], num_seats: int) -> None:
    if not 0 <= row < num_seats:
        raise _error(plan, f"fills row {row}; rows are 0 to {num_seats - 1}")
    if row in taken:
        raise _error(plan, f"fills row {row}, which is taken")
    taken.add(row)


def _check_admission(plan: StepPlan, admission: Admission, block_size: int) -> None:
    num_tokens, num_cached = len(admission.token_ids), admission.num_cached_tokens
    if not 0 <= num_cached < num_tokens or num_cached % block_size:
        raise _error(
            plan,
            f"admits row {admission.row} with {num_cached} cached of {num_tokens} tokens; "
            f"allowed are multiples of {block_size} below {num_tokens}",
        )
    if num_cached > len(admission.blocks) * block_size:
        raise _error(
            plan,
            f"admits row {admission.row} with {num_cached} cached tokens in "
            f"{len(admission.blocks)} blocks of {block_size}",
        )
    if num_tokens >= admission.max_len or not 0 < admission.num_prompt_tokens <= num_tokens:
        raise _error(
            plan,
            f"admits row {admission.row} with {num_tokens} tokens, "
            f"{admission.num_prompt_tokens} of them prompt; max_len is {admission.max_len}",
        )


def _check_blocks(plan: StepPlan, blocks: Sequence[int], num_blocks: int) -> None:
    for block in blocks:
        if not 0 <= block < num_blocks:
            raise _error(plan, f"names block {block}; blocks are 0 to {num_blocks - 1}")


def _check_chunks(
    plan: StepPlan, rows: RowTable, admitted: dict[int, int], forked: dict[int, int]
) -> None:
    seen: set[int] = set()
    for index, num_tokens in plan.chunks:
        if index in admitted:
            left = admitted[index]
        else:
            source = forked.get(index, index)
            row = rows.get(source) if 0 <= source < len(rows.rows) else None
            left = row.num_prefill_left if row is not None else 0
        if index in seen or not 0 < num_tokens <= left:
            raise _error(
                plan, f"has a chunk of {num_tokens} for row {index}, which has {left} left"
            )
        seen.add(index)


def _error(plan: StepPlan, what: str) -> PlanRefused:
    return PlanRefused(f"plan {plan.plan_id} {what}", metadata={"plan_id": str(plan.plan_id)})
