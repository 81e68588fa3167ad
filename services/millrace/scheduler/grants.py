"""Blocks for the rows that decode: who gets some, who waits, who has to go.

For every row that decodes in a plan, afterwards
    granted tokens >= min(max_len, applied tokens + steps in flight + lease_steps + 1),
where steps in flight are all that earlier plans and their leases may still run. So no row starves
while the scheduler is late. Short of blocks the lease is given up first; then rows are held as
long as released blocks are on their way back; then the row of lowest priority and latest arrival
is preempted.
"""

from __future__ import annotations

from .row import IssuedPlan, Row
from .worker_mirror import WorkerMirror


def grant_blocks(worker: WorkerMirror, step: IssuedPlan, lease_steps: int) -> int:
    """Adds grants, holds, releases and the lease to the plan; returns the number of preemptions."""
    short = _survey(worker, step, lease_steps)
    if lease_steps and sum(count for _, count in short) > worker.blocks.num_available:
        lease_steps = 0
        short = _survey(worker, step, lease_steps)
    step.plan.lease_steps = lease_steps
    if sum(count for _, count in short) <= worker.blocks.num_available:
        for row, num_blocks in short:
            worker.grant(step, row, num_blocks)
        return 0
    return _share_out(worker, step, short)


def is_covered(worker: WorkerMirror, row: Row) -> bool:
    """True where `row` has blocks for every step that the plans issued so far may run."""
    num_steps = worker.num_issued_steps - max(row.first_step, worker.num_settled_steps)
    return row.granted_tokens >= min(row.max_len, row.num_tokens + num_steps - row.num_held)


def _survey(worker: WorkerMirror, step: IssuedPlan, lease_steps: int) -> list[tuple[Row, int]]:
    """Rows that lack blocks, and how many; counts the rows that decode. The only loop over rows."""
    block_size = worker.blocks.block_size
    settled = worker.num_settled_steps
    ahead = worker.num_issued_steps + lease_steps + 1
    num_outstanding, plan_id = worker.num_outstanding, step.plan.plan_id
    num_runnable = 0
    short: list[tuple[Row, int]] = []
    for row in worker.decoding.values():
        first_step = row.first_step
        needed = row.num_tokens + ahead - (first_step if first_step > settled else settled)
        needed -= row.num_held
        if needed > row.max_len:
            needed = row.max_len
        if needed > row.granted_tokens:
            short.append((row, -(-needed // block_size) - len(row.blocks)))
        flying = plan_id - row.first_plan
        if flying > num_outstanding:
            flying = num_outstanding
        num_runnable += row.num_tokens + flying - row.num_held < row.max_len
    step.num_decode_rows = num_runnable
    step.kv_tokens = worker.num_kv_tokens
    return short


def _share_out(worker: WorkerMirror, step: IssuedPlan, short: list[tuple[Row, int]]) -> int:
    num_preemptions = num_promised = 0
    num_pending = worker.num_pending_blocks()
    for row, num_blocks in sorted(short, key=lambda entry: entry[0].sequence.rank):
        is_in_need = not _has_room_for_sure_steps(worker, row)
        while (
            is_in_need
            and not row.is_leaving
            and num_blocks > worker.blocks.num_available + num_pending - num_promised
            and (victim := _victim(worker)) is not None
        ):
            num_pending += worker.preempt(step, victim)
            num_preemptions += 1
        if row.is_leaving:
            continue
        if num_blocks <= worker.blocks.num_available - num_promised:
            worker.grant(step, row, num_blocks)
        else:
            worker.hold(step, row)
            num_promised += num_blocks * is_in_need
    return num_preemptions


def _has_room_for_sure_steps(worker: WorkerMirror, row: Row) -> bool:
    """True where only a lease of an earlier plan, if it still runs, makes the row short.

    Then it sits out until that is known, for two plans at most, rather than anybody lose a row.
    """
    num_tokens = row.num_tokens + worker.num_sure_steps(row) + 1
    return row.granted_tokens >= min(row.max_len, num_tokens)


def _victim(worker: WorkerMirror) -> Row | None:
    """The live row to go first, never the only one."""
    if worker.num_live_rows < 2:
        return None
    live = (*worker.decoding.values(), *worker.prefilling.values())
    return max(live, key=lambda row: row.sequence.rank)
