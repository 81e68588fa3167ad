"""Step plans and step results to protobuf and back."""

from __future__ import annotations

from millrace.core.step import Admission, Fork, RowError, RowToken, StepPlan, StepResult
from millrace.core.tokens import FinishReason
from millrace.internal.v1 import worker_pb2

from .logprobs import pack_logprobs, unpack_logprobs
from .requests import sampling_spec_from_proto, sampling_spec_to_proto


def step_plan_to_proto(plan: StepPlan) -> worker_pb2.StepPlan:
    """Of one step's plan."""
    return worker_pb2.StepPlan(
        plan_id=plan.plan_id,
        release_rows=plan.release_rows,
        copy_from=[source for source, _ in plan.copy_blocks],
        copy_to=[target for _, target in plan.copy_blocks],
        forks=[_fork_to_proto(fork) for fork in plan.forks],
        hold_rows=plan.hold_rows,
        admissions=[_admission_to_proto(admission) for admission in plan.admissions],
        grant_rows=[row for row, _ in plan.grants],
        grant_blocks=[block for _, block in plan.grants],
        chunk_rows=[row for row, _ in plan.chunks],
        chunk_tokens=[num_tokens for _, num_tokens in plan.chunks],
        lease_steps=plan.lease_steps,
    )


def step_plan_from_proto(message: worker_pb2.StepPlan) -> StepPlan:
    """Of one step's plan."""
    return StepPlan(
        plan_id=message.plan_id,
        release_rows=list(message.release_rows),
        copy_blocks=list(zip(message.copy_from, message.copy_to, strict=True)),
        forks=[_fork_from_proto(fork) for fork in message.forks],
        hold_rows=list(message.hold_rows),
        admissions=[_admission_from_proto(admission) for admission in message.admissions],
        grants=list(zip(message.grant_rows, message.grant_blocks, strict=True)),
        chunks=list(zip(message.chunk_rows, message.chunk_tokens, strict=True)),
        lease_steps=message.lease_steps,
    )


def _fork_to_proto(fork: Fork) -> worker_pb2.Fork:
    return worker_pb2.Fork(
        from_row=fork.from_row,
        to_row=fork.to_row,
        to_row_epoch=fork.to_row_epoch,
        choice=fork.choice,
        blocks=fork.blocks,
    )


def _fork_from_proto(message: worker_pb2.Fork) -> Fork:
    return Fork(
        from_row=message.from_row,
        to_row=message.to_row,
        to_row_epoch=message.to_row_epoch,
        choice=message.choice,
        blocks=list(message.blocks),
    )


def _admission_to_proto(admission: Admission) -> worker_pb2.Admission:
    return worker_pb2.Admission(
        row=admission.row,
        row_epoch=admission.row_epoch,
        token_ids=admission.token_ids,
        num_prompt_tokens=admission.num_prompt_tokens,
        num_cached_tokens=admission.num_cached_tokens,
        choice=admission.choice,
        blocks=admission.blocks,
        sampling=sampling_spec_to_proto(admission.sampling),
        stop_token_ids=admission.stop_token_ids,
        max_len=admission.max_len,
        sync=admission.sync,
        traceparent=admission.traceparent,
    )


def _admission_from_proto(message: worker_pb2.Admission) -> Admission:
    return Admission(
        row=message.row,
        row_epoch=message.row_epoch,
        token_ids=list(message.token_ids),
        num_prompt_tokens=message.num_prompt_tokens,
        num_cached_tokens=message.num_cached_tokens,
        choice=message.choice,
        blocks=list(message.blocks),
        sampling=sampling_spec_from_proto(message.sampling),
        stop_token_ids=tuple(message.stop_token_ids),
        max_len=message.max_len,
        sync=message.sync,
        traceparent=message.traceparent,
    )


def step_result_to_proto(result: StepResult) -> worker_pb2.StepResult:
    """Of one step's result."""
    return worker_pb2.StepResult(
        step_id=result.step_id,
        plan_id=result.plan_id,
        rows=[token.row for token in result.tokens],
        row_epochs=[token.row_epoch for token in result.tokens],
        tokens=[token.token_id for token in result.tokens],
        finish=[token.finish for token in result.tokens],
        logprobs=pack_logprobs(token.logprobs for token in result.tokens),
        starved_rows=result.starved_rows,
        failed_rows=result.failed_rows,
        failure=result.failure,
        broken_rows=[error.row for error in result.row_errors],
        broken_reasons=[error.reason for error in result.row_errors],
        num_tokens=result.num_tokens,
        num_decode_rows=result.num_decode_rows,
        started_unix_ns=result.started_unix_ns,
        step_ns=result.step_ns,
        forward_ns=result.forward_ns,
        sample_ns=result.sample_ns,
    )


def step_result_from_proto(message: worker_pb2.StepResult) -> StepResult:
    """Of one step's result."""
    logprobs = unpack_logprobs(message.logprobs)
    columns = zip(message.rows, message.row_epochs, message.tokens, message.finish, strict=True)
    return StepResult(
        step_id=message.step_id,
        plan_id=message.plan_id,
        tokens=[
            RowToken(row, row_epoch, token_id, FinishReason(finish), logprobs.get(index))
            for index, (row, row_epoch, token_id, finish) in enumerate(columns)
        ],
        starved_rows=list(message.starved_rows),
        failed_rows=list(message.failed_rows),
        failure=message.failure,
        row_errors=list(map(RowError, message.broken_rows, message.broken_reasons)),
        num_tokens=message.num_tokens,
        num_decode_rows=message.num_decode_rows,
        started_unix_ns=message.started_unix_ns,
        step_ns=message.step_ns,
        forward_ns=message.forward_ns,
        sample_ns=message.sample_ns,
    )
