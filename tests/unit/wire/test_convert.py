"""Messages and core types: nothing is lost on the way there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.core.membership import (
    SchedulerOwner,
    SchedulerStatus,
    WorkerLoad,
    WorkerRegistration,
)
from millrace.core.model import ModelInfo
from millrace.core.request import Priority, QueuedRequest
from millrace.core.sampling import SamplingDefaults, SamplingSpec
from millrace.core.step import Admission, Fork, RowError, RowToken, StepPlan, StepResult
from millrace.core.tokens import (
    Failed,
    FinishReason,
    Scheduled,
    TokenDelta,
    TokenFrame,
    TokenLogprobs,
)
from millrace.wire import frames as wire_frames
from millrace.wire import membership, steps
from millrace.wire import requests as wire_requests

ids = st.integers(0, 2**32 - 1)
id_lists = st.lists(ids, max_size=5)
pairs = st.lists(st.tuples(ids, ids), max_size=5)
f32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
f64 = st.floats(allow_nan=False)
request_ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
specs = st.builds(
    SamplingSpec,
    temperature=f64,
    top_p=f64,
    top_k=ids,
    min_p=f64,
    repetition_penalty=f64,
    presence_penalty=f64,
    frequency_penalty=f64,
    logit_bias=st.lists(st.tuples(ids, f64), max_size=3).map(tuple),
    seed=st.integers(0, 2**64 - 1),
    top_logprobs=st.none() | st.integers(0, 20),
    min_tokens=ids,
)
logprobs = st.builds(
    TokenLogprobs, chosen=f32, top=st.lists(st.tuples(ids, f32), max_size=3).map(tuple)
)
finishes = st.sampled_from(FinishReason)
admissions = st.builds(
    Admission,
    row=ids,
    row_epoch=ids,
    token_ids=id_lists,
    num_prompt_tokens=ids,
    num_cached_tokens=ids,
    choice=ids,
    blocks=id_lists,
    sampling=specs,
    stop_token_ids=id_lists.map(tuple),
    max_len=ids,
    sync=st.booleans(),
    traceparent=st.text(max_size=60),
)
plans = st.builds(
    StepPlan,
    plan_id=ids,
    release_rows=id_lists,
    copy_blocks=pairs,
    forks=st.lists(
        st.builds(Fork, from_row=ids, to_row=ids, to_row_epoch=ids, choice=ids, blocks=id_lists),
        max_size=2,
    ),
    hold_rows=id_lists,
    admissions=st.lists(admissions, max_size=2),
    grants=pairs,
    chunks=pairs,
    lease_steps=ids,
)
results = st.builds(
    StepResult,
    step_id=ids,
    plan_id=ids,
    tokens=st.lists(
        st.builds(
            RowToken,
            row=ids,
            row_epoch=ids,
            token_id=ids,
            finish=finishes,
            logprobs=st.none() | logprobs,
        ),
        max_size=4,
    ),
    starved_rows=id_lists,
    failed_rows=id_lists,
    failure=st.text(max_size=20),
    row_errors=st.lists(st.builds(RowError, row=ids, reason=st.text(max_size=9)), max_size=2),
    num_tokens=ids,
    num_decode_rows=ids,
    started_unix_ns=st.integers(0, 2**62),
    step_ns=ids,
    forward_ns=ids,
    sample_ns=ids,
)
wishes = st.builds(
    SamplingDefaults,
    temperature=st.none() | f64,
    top_p=st.none() | f64,
    top_k=st.none() | ids,
    min_p=st.none() | f64,
    repetition_penalty=st.none() | f64,
)
models = st.builds(
    ModelInfo,
    name=st.text(max_size=10),
    revision=st.text(max_size=10),
    dtype=st.text(max_size=10),
    max_model_len=ids,
    vocab_size=ids,
    aliases=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    eos_token_ids=id_lists.map(tuple),
    num_parameters=ids,
    weight_bytes=ids,
    quantization=st.text(max_size=5),
    architecture=st.text(max_size=5),
    route=st.text(max_size=5),
    config_json=st.text(max_size=10),
    default_sampling=wishes,
)


@st.composite
def deltas(draw: st.DrawFn) -> TokenDelta:
    token_ids = draw(id_lists)
    with_logprobs = draw(st.booleans())
    return TokenDelta(
        request_id=draw(request_ids),
        choice=draw(ids),
        start_index=draw(ids),
        token_ids=token_ids,
        finish=draw(finishes),
        logprobs=[draw(logprobs) for _ in token_ids] if with_logprobs else [],
    )


frames = st.builds(
    TokenFrame,
    attempt=st.integers(0, 2**63),
    deltas=st.lists(deltas(), max_size=4),
    scheduled=st.lists(
        st.builds(
            Scheduled,
            request_id=request_ids,
            scheduled_unix_ns=st.integers(0, 2**62),
            num_cached_tokens=ids,
        ),
        max_size=2,
    ),
    failed=st.lists(
        st.builds(
            Failed,
            request_id=request_ids,
            code=st.integers(0, 16),
            reason=st.text(max_size=5),
            message=st.text(max_size=5),
        ),
        max_size=2,
    ),
)
requests = st.builds(
    QueuedRequest,
    request_id=request_ids,
    gateway_id=st.text(max_size=5),
    model=st.text(max_size=5),
    prompt_token_ids=id_lists,
    sampling=specs,
    stop_token_ids=id_lists.map(tuple),
    max_tokens=ids,
    num_choices=ids,
    priority=st.sampled_from(Priority),
    deadline_unix_ms=st.integers(0, 2**62),
    arrival_unix_ns=st.integers(0, 2**62),
    tenant=st.text(max_size=5),
)


@given(plans)
def test_step_plan_survives_the_wire(plan: StepPlan) -> None:
    assert steps.step_plan_from_proto(steps.step_plan_to_proto(plan)) == plan


@given(results)
def test_step_result_survives_the_wire(result: StepResult) -> None:
    assert steps.step_result_from_proto(steps.step_result_to_proto(result)) == result


@given(frames)
def test_token_frame_survives_the_wire(frame: TokenFrame) -> None:
    assert wire_frames.token_frame_from_proto(wire_frames.token_frame_to_proto(frame)) == frame


@given(requests, st.text(max_size=10))
def test_queued_request_survives_the_wire(request: QueuedRequest, traceparent: str) -> None:
    message = wire_requests.queued_request_to_proto(request)
    received = wire_requests.queued_request_from_proto(message, traceparent)
    assert received.traceparent == traceparent
    assert wire_requests.queued_request_to_proto(received) == message


def test_queued_request_of_an_unknown_schema_is_refused() -> None:
    request = QueuedRequest(
        *("00" * 16, "gw", "m", [1], SamplingSpec(), (), 1, 1, Priority.LOW, 0, 0)
    )
    message = wire_requests.queued_request_to_proto(request)
    message.schema_version += 1
    with pytest.raises(ValueError, match="schema version"):
        wire_requests.queued_request_from_proto(message)


@given(models)
def test_registration_survives_the_wire(model: ModelInfo) -> None:
    registration = WorkerRegistration("w", "boot", "host:1", model, 9, 32, 4)
    message = membership.worker_registration_to_proto(registration)
    assert membership.worker_registration_from_proto(message) == registration


@given(models)
def test_scheduler_status_survives_the_wire(model: ModelInfo) -> None:
    status = SchedulerStatus(model, 1, 2, 3, 4, 5, 6)
    message = membership.scheduler_status_to_proto(status)
    assert membership.scheduler_status_from_proto(message) == status


def test_load_and_owner_survive_the_wire() -> None:
    load = WorkerLoad("w", 1, 2, 3, 4, 5)
    owner = SchedulerOwner("s", 7, "host:2", "model")
    load_message = membership.worker_load_to_proto(load)
    owner_message = membership.scheduler_owner_to_proto(owner)
    assert membership.worker_load_from_proto(load_message) == load
    assert membership.scheduler_owner_from_proto(owner_message) == owner


def test_steady_state_plan_is_a_few_bytes() -> None:
    message = steps.step_plan_to_proto(StepPlan(plan_id=1_000_000, lease_steps=2))
    assert message.ByteSize() < 10
