"""Registrations, ownership, load and status to protobuf and back."""

from __future__ import annotations

from dataclasses import fields

from millrace.core.membership import (
    SchedulerOwner,
    SchedulerStatus,
    WorkerLoad,
    WorkerRegistration,
)
from millrace.core.model import ModelInfo
from millrace.core.sampling import SamplingDefaults
from millrace.internal.v1 import bus_pb2, scheduler_pb2
from millrace.v1 import types_pb2


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
        default_sampling=default_sampling_to_proto(info.default_sampling),
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
        default_sampling=default_sampling_from_proto(message.default_sampling),
    )


def default_sampling_to_proto(defaults: SamplingDefaults) -> types_pb2.SamplingParams:
    """Converts to protobuf; what is None stays absent."""
    return types_pb2.SamplingParams(**defaults.given())


def default_sampling_from_proto(message: types_pb2.SamplingParams) -> SamplingDefaults:
    """Converts from protobuf; what is absent becomes None."""
    present = {known.name: value for known, value in message.ListFields()}
    return SamplingDefaults(
        **{each.name: present.get(each.name) for each in fields(SamplingDefaults)}
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
        num_sampled_tokens=load.num_sampled_tokens,
    )


def worker_load_from_proto(message: bus_pb2.WorkerLoad) -> WorkerLoad:
    """Of a worker's load."""
    return WorkerLoad(
        worker_id=message.worker_id,
        num_rows=message.num_rows,
        num_steps=message.num_steps,
        last_step_ns=message.last_step_ns,
        resident_bytes=message.resident_bytes,
        num_sampled_tokens=message.num_sampled_tokens,
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
