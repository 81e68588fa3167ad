"""Who is alive and what they can do: registrations, ownership, load and status."""

from __future__ import annotations

from dataclasses import dataclass

from .model import ModelInfo


@dataclass(frozen=True, slots=True)
class WorkerRegistration:
    """A worker's entry in the registrations bucket; `boot_id` is new at every start."""

    worker_id: str
    boot_id: str
    advertise_address: str
    model: ModelInfo
    num_blocks: int
    block_size: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's load; worthless when stale, so never stored."""

    worker_id: str
    num_rows: int
    num_steps: int
    last_step_ns: int
    resident_bytes: int
    num_sampled_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SchedulerOwner:
    """The active scheduler of a model; workers and gateways refuse epochs lower than seen."""

    scheduler_id: str
    owner_epoch: int
    advertise_address: str
    model: str


@dataclass(frozen=True, slots=True)
class SchedulerStatus:
    """What the scheduler can do now, as gateways see it."""

    model: ModelInfo
    num_workers: int
    num_waiting: int
    num_running: int
    num_blocks: int
    num_free_blocks: int
    owner_epoch: int


@dataclass(frozen=True, slots=True)
class ResumeQuery:
    """Requests whose state the scheduler does not have and asks the gateway for."""

    request_ids: tuple[str, ...]
