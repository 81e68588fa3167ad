"""Core types to protobuf messages and back: pure, lossless, tested by round trips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from millrace.core.membership import (
    SchedulerOwner,
    SchedulerStatus,
    WorkerLoad,
    WorkerRegistration,
)
from millrace.core.model import ModelInfo
from millrace.core.request import SCHEMA_VERSION, Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission, Fork, RowToken, StepPlan, StepResult
from millrace.core.tokens import (
    Failed,
    FinishReason,
    Scheduled,
    TokenDelta,
    TokenFrame,
    TokenLogprobs,
)
from millrace.internal.v1 import bus_pb2, logprobs_pb2, scheduler_pb2, worker_pb2

# Requests -------------------------------------------------------------------------------------


def sampling_spec_to_proto(spec: SamplingSpec) -> bus_pb2.SamplingSpec:
    """Of a sequence's resolved sampling values."""
    return bus_pb2.SamplingSpec(
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        min_p=spec.min_p,
        repetition_penalty=spec.repetition_penalty,
        presence_penalty=spec.presence_penalty,
        frequency_penalty=spec.frequency_penalty,
        logit_bias_ids=[token_id for token_id, _ in spec.logit_bias],
        logit_bias_values=[bias for _, bias in spec.logit_bias],
        seed=spec.seed,
        top_logprobs=spec.top_logprobs,
        min_tokens=spec.min_tokens,
    )


def sampling_spec_from_proto(message: bus_pb2.SamplingSpec) -> SamplingSpec:
    """Of a sequence's resolved sampling values."""
    return SamplingSpec(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple(zip(message.logit_bias_ids, message.logit_bias_values, strict=True)),
        seed=message.seed,
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
        min_tokens=message.min_tokens,
    )


def queued_request_to_proto(request: QueuedRequest) -> bus_pb2.QueuedRequest:
    """The traceparent is not part of the message: it travels in the NATS header."""
    return bus_pb2.QueuedRequest(
        schema_version=SCHEMA_VERSION,
        request_id=request.request_id,
        gateway_id=request.gateway_id,
        model=request.model,
        prompt_token_ids=request.prompt_token_ids,
        sampling=sampling_spec_to_proto(request.sampling),
        stop_token_ids=request.stop_token_ids,
        max_tokens=request.max_tokens,
        num_choices=request.num_choices,
        priority=request.priority.value,  # type: ignore[arg-type]
        deadline_unix_ms=request.deadline_unix_ms,
        arrival_unix_ns=request.arrival_unix_ns,
        tenant=request.tenant,
    )


def queued_request_from_proto(
    message: bus_pb2.QueuedRequest, traceparent: str = ""
) -> QueuedRequest:
    """Raises `ValueError` for a schema version that this release does not know."""
    if message.schema_version != SCHEMA_VERSION:
        raise ValueError(f"request schema version {message.schema_version} is not {SCHEMA_VERSION}")
    return QueuedRequest(
        request_id=message.request_id,
        gateway_id=message.gateway_id,
        model=message.model,
        prompt_token_ids=list(message.prompt_token_ids),
        sampling=sampling_spec_from_proto(message.sampling),
        stop_token_ids=tuple(message.stop_token_ids),
        max_tokens=message.max_tokens,
        num_choices=message.num_choices,
        priority=Priority(message.priority),
        deadline_unix_ms=message.deadline_unix_ms,
        arrival_unix_ns=message.arrival_unix_ns,
        tenant=message.tenant,
        traceparent=traceparent,
    )


# Membership -----------------------------------------------------------------------------------


def model_info_to_proto(info: ModelInfo) -> bus_pb2.ModelInfo:
    """Of a loaded model."""
    return bus_pb2.ModelInfo(
        name=info.name,
        aliases=info.aliases,
        revision=info.revision,
        dtype=info.dtype,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        eos_token_ids=info.eos_token_ids,
        num_parameters=info.num_parameters,
        weight_bytes=info.weight_bytes,
        quantization=info.quantization,
        architecture=info.architecture,
        route=info.route,
        config_json=info.config_json,
    )


def model_info_from_proto(message: bus_pb2.ModelInfo) -> ModelInfo:
    """Of a loaded model."""
    return ModelInfo(
        name=message.name,
        aliases=tuple(message.aliases),
        revision=message.revision,
        dtype=message.dtype,
        max_model_len=message.max_model_len,
        vocab_size=message.vocab_size,
        eos_token_ids=tuple(message.eos_token_ids),
        num_parameters=message.num_parameters,
        weight_bytes=message.weight_bytes,
        quantization=message.quantization,
        architecture=message.architecture,
        route=message.route,
        config_json=message.config_json,
    )


def worker_registration_to_proto(
    registration: WorkerRegistration,
) -> bus_pb2.WorkerRegistration:
    """Of a worker's entry in the registrations bucket."""
    return bus_pb2.WorkerRegistration(
        worker_id=registration.worker_id,
        boot_id=registration.boot_id,
        advertise_address=registration.advertise_address,
        model=model_info_to_proto(registration.model),
        num_blocks=registration.num_blocks,
        block_size=registration.block_size,
        max_num_seqs=registration.max_num_seqs,
    )


def worker_registration_from_proto(message: bus_pb2.WorkerRegistration) -> WorkerRegistration:
    """Of a worker's entry in the registrations bucket."""
    return WorkerRegistration(
        worker_id=message.worker_id,
        boot_id=message.boot_id,
        advertise_address=message.advertise_address,
        model=model_info_from_proto(message.model),
        num_blocks=message.num_blocks,
        block_size=message.block_size,
        max_num_seqs=message.max_num_seqs,
    )


def worker_load_to_proto(load: WorkerLoad) -> bus_pb2.WorkerLoad:
    """Of a worker's load."""
    return bus_pb2.WorkerLoad(
        worker_id=load.worker_id,
        num_rows=load.num_rows,
        num_steps=load.num_steps,
        last_step_ns=load.last_step_ns,
        resident_bytes=load.resident_bytes,
    )


def worker_load_from_proto(message: bus_pb2.WorkerLoad) -> WorkerLoad:
    """Of a worker's load."""
    return WorkerLoad(
        worker_id=message.worker_id,
        num_rows=message.num_rows,
        num_steps=message.num_steps,
        last_step_ns=message.last_step_ns,
        resident_bytes=message.resident_bytes,
    )


def scheduler_owner_to_proto(owner: SchedulerOwner) -> bus_pb2.SchedulerOwner:
    """Of the active scheduler of a model."""
    return bus_pb2.SchedulerOwner(
        scheduler_id=owner.scheduler_id,
        owner_epoch=owner.owner_epoch,
        advertise_address=owner.advertise_address,
        model=owner.model,
    )


def scheduler_owner_from_proto(message: bus_pb2.SchedulerOwner) -> SchedulerOwner:
    """Of the active scheduler of a model."""
    return SchedulerOwner(
        scheduler_id=message.scheduler_id,
        owner_epoch=message.owner_epoch,
        advertise_address=message.advertise_address,
        model=message.model,
    )


def scheduler_status_to_proto(status: SchedulerStatus) -> scheduler_pb2.SchedulerStatus:
    """Of a scheduler's capacity."""
    return scheduler_pb2.SchedulerStatus(
        model=model_info_to_proto(status.model),
        num_workers=status.num_workers,
        num_waiting=status.num_waiting,
        num_running=status.num_running,
        num_blocks=status.num_blocks,
        num_free_blocks=status.num_free_blocks,
        owner_epoch=status.owner_epoch,
    )


def scheduler_status_from_proto(message: scheduler_pb2.SchedulerStatus) -> SchedulerStatus:
    """Of a scheduler's capacity."""
    return SchedulerStatus(
        model=model_info_from_proto(message.model),
        num_workers=message.num_workers,
        num_waiting=message.num_waiting,
        num_running=message.num_running,
        num_blocks=message.num_blocks,
        num_free_blocks=message.num_free_blocks,
        owner_epoch=message.owner_epoch,
    )


# Steps ----------------------------------------------------------------------------------------


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
        logprobs=_pack_logprobs(token.logprobs for token in result.tokens),
        starved_rows=result.starved_rows,
        failed_rows=result.failed_rows,
        failure=result.failure,
        num_tokens=result.num_tokens,
        num_decode_rows=result.num_decode_rows,
        started_unix_ns=result.started_unix_ns,
        step_ns=result.step_ns,
        forward_ns=result.forward_ns,
        sample_ns=result.sample_ns,
    )


def step_result_from_proto(message: worker_pb2.StepResult) -> StepResult:
    """Of one step's result."""
    logprobs = _unpack_logprobs(message.logprobs)
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
        num_tokens=message.num_tokens,
        num_decode_rows=message.num_decode_rows,
        started_unix_ns=message.started_unix_ns,
        step_ns=message.step_ns,
        forward_ns=message.forward_ns,
        sample_ns=message.sample_ns,
    )


# Frames ---------------------------------------------------------------------------------------


def token_frame_to_proto(frame: TokenFrame) -> scheduler_pb2.TokenFrame:
    """Of what one step has for one gateway."""
    deltas = frame.deltas
    return scheduler_pb2.TokenFrame(
        attempt=frame.attempt,
        request_ids=[bytes.fromhex(delta.request_id) for delta in deltas],
        choices=[delta.choice for delta in deltas],
        start_index=[delta.start_index for delta in deltas],
        num_tokens=[len(delta.token_ids) for delta in deltas],
        finish=[delta.finish for delta in deltas],
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=_pack_logprobs(_logprobs_of_tokens(deltas)),
        scheduled=[
            scheduler_pb2.Scheduled(
                request_id=scheduled.request_id,
                scheduled_unix_ns=scheduled.scheduled_unix_ns,
                num_cached_tokens=scheduled.num_cached_tokens,
            )
            for scheduled in frame.scheduled
        ],
        failed=[
            scheduler_pb2.Failed(
                request_id=failed.request_id,
                code=failed.code,
                reason=failed.reason,
                message=failed.message,
            )
            for failed in frame.failed
        ],
    )


def token_frame_from_proto(message: scheduler_pb2.TokenFrame) -> TokenFrame:
    """Of what one step has for one gateway."""
    logprobs = _unpack_logprobs(message.logprobs)
    frame = TokenFrame(attempt=message.attempt)
    columns = zip(
        message.request_ids,
        message.choices,
        message.start_index,
        message.num_tokens,
        message.finish,
        strict=True,
    )
    token_ids = list(message.token_ids)
    begin = 0
    for request_id, choice, start_index, num_tokens, finish in columns:
        end = begin + num_tokens
        frame.deltas.append(
            TokenDelta(
                request_id=request_id.hex(),
                choice=choice,
                start_index=start_index,
                token_ids=token_ids[begin:end],
                finish=FinishReason(finish),
                logprobs=[logprobs[index] for index in range(begin, end) if index in logprobs],
            )
        )
        begin = end
    frame.scheduled = [
        Scheduled(item.request_id, item.scheduled_unix_ns, item.num_cached_tokens)
        for item in message.scheduled
    ]
    frame.failed = [
        Failed(item.request_id, item.code, item.reason, item.message) for item in message.failed
    ]
    return frame


def _logprobs_of_tokens(deltas: Sequence[TokenDelta]) -> Iterable[TokenLogprobs | None]:
    for delta in deltas:
        yield from delta.logprobs or repeat(None, len(delta.token_ids))


def _pack_logprobs(
    entries: Iterable[TokenLogprobs | None],
) -> logprobs_pb2.PackedLogprobs | None:
    present = [(index, entry) for index, entry in enumerate(entries) if entry is not None]
    if not present:
        return None
    return logprobs_pb2.PackedLogprobs(
        token_index=[index for index, _ in present],
        chosen=[entry.chosen for _, entry in present],
        num_top=[len(entry.top) for _, entry in present],
        top_ids=[token_id for _, entry in present for token_id, _ in entry.top],
        top=[logprob for _, entry in present for _, logprob in entry.top],
    )


def _unpack_logprobs(message: logprobs_pb2.PackedLogprobs) -> dict[int, TokenLogprobs]:
    unpacked: dict[int, TokenLogprobs] = {}
    top = list(zip(message.top_ids, message.top, strict=True))
    begin = 0
    columns = zip(message.token_index, message.chosen, message.num_top, strict=True)
    for index, chosen, num_top in columns:
        unpacked[index] = TokenLogprobs(chosen, tuple(top[begin : begin + num_top]))
        begin += num_top
    return unpacked
