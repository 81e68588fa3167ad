"""Each cause of slowness is told from a trace that shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from millrace.telemetry.cause import Cause
from millrace.telemetry.diagnosis import diagnose
from millrace.telemetry.durations import format_s
from millrace.testing.sample_trace import SampleTimings, sample_steps, sample_trace


@pytest.mark.parametrize(
    ("timings", "cause", "words"),
    [
        (SampleTimings(queue_s=3.0), Cause.QUEUE, "waited 3.00 s of 3.44 s (87%) for a row"),
        (SampleTimings(prefill_s=2.0), Cause.PREFILL, "prefill: 100 prompt tokens took 2.00 s"),
        (
            SampleTimings(prefill_s=2.0, num_chunks=7),
            Cause.PREFILL,
            "prefill in 7 chunks: 100 prompt tokens took 2.00 s",
        ),
        (
            SampleTimings(preempted_s=2.0, prefill_s=0.3),
            Cause.PREEMPTION,
            "cause: preemption: it lost its row once for want of KV blocks, and getting back took "
            "2.30 s",
        ),
        (
            SampleTimings(decode_s=4.0, num_steps=40),
            Cause.WORKER,
            "40 decode steps of 100.0 ms each took 4.00 s",
        ),
        (SampleTimings(blocked_s=5.0), Cause.CLIENT, "text lay ready for 5.00 s"),
        (SampleTimings(encode_s=2.0), Cause.TOKENIZER, "took 2.00 s"),
        (SampleTimings(look_up_s=2.0), Cause.CACHE, "the response cache took 2.00 s"),
        (SampleTimings(send_s=2.0), Cause.INTAKE, "publishing on NATS took 2.00 s"),
        (SampleTimings(gateway_s=2.0, detokenize_s=0.0), Cause.GATEWAY, "during 2.00 s"),
    ],
)
def test_cause_is_named_with_its_numbers(timings: SampleTimings, cause: Cause, words: str) -> None:
    diagnosis = diagnose(sample_trace(timings))

    assert diagnosis.cause is cause
    assert words in diagnosis.sentence
    assert diagnosis.share > 0.5


def test_the_parts_add_up_to_the_whole() -> None:
    spans = sample_trace(SampleTimings(preempted_s=0.3, blocked_s=0.2, look_up_s=0.1))

    assert sum(diagnose(spans).seconds.values()) == pytest.approx(spans[0].duration_s)


def test_client_that_is_slow_while_decoding_goes_on_is_not_blamed() -> None:
    spans = sample_trace(SampleTimings(decode_s=4.0))
    root = replace(spans[0], attributes={**spans[0].attributes, "millrace.client.blocked_s": 3.0})

    diagnosis = diagnose([root, *spans[1:]])

    assert diagnosis.cause is Cause.WORKER
    assert diagnosis.seconds.get(Cause.CLIENT, 0.0) < 0.1


def test_slow_decode_calls_after_the_last_token_are_the_tokenizer() -> None:
    spans = sample_trace(SampleTimings(gateway_s=3.0, detokenize_s=2.9))

    assert diagnose(spans).cause is Cause.TOKENIZER


def test_next_prefill_ends_a_preemption_without_a_resumed_event() -> None:
    spans = sample_trace(SampleTimings(preempted_s=1.0, prefill_s=0.1))
    cut = [
        replace(span, events=[event for event in span.events if event.name != "resumed"])
        for span in spans
    ]

    assert diagnose(cut).seconds == diagnose(spans).seconds


def test_time_on_nats_is_queue() -> None:
    spans = sample_trace(SampleTimings(queue_s=2.0))
    late = [
        replace(span, start_ns=span.start_ns + 15 * 10**8)
        if span.name in ("queue_wait", "process mr.v1.req")
        else span
        for span in spans
    ]

    assert diagnose(late).seconds[Cause.QUEUE] == pytest.approx(2.0)


def test_preempted_and_never_resumed_counts_to_the_end() -> None:
    spans = sample_trace(SampleTimings(preempted_s=1.0))
    cut = [
        replace(span, events=[event for event in span.events if event.name != "resumed"])
        for span in spans
        if not (span.name in ("prefill", "decode") and span.start_ns > spans[0].start_ns + 10**9)
    ]

    assert diagnose(cut).cause is Cause.PREEMPTION


def test_no_cause_is_named_where_none_stands_out() -> None:
    even = SampleTimings(
        look_up_s=0.1, encode_s=0.1, send_s=0.1, queue_s=0.1, prefill_s=0.1, decode_s=0.1
    )

    diagnosis = diagnose(sample_trace(even))

    assert diagnosis.cause is Cause.NONE
    assert "no single cause" in diagnosis.sentence


def test_batch_size_is_the_mean_over_linked_steps() -> None:
    spans = sample_trace()
    steps = [*sample_steps(spans, batch_size=8), *sample_steps(spans, batch_size=16)]

    diagnosis = diagnose(spans, steps)

    assert (diagnosis.num_steps, diagnosis.mean_batch_size) == (8, 12.0)
    assert "batches of 12.0 rows" in diagnosis.sentence


def test_healthy_request_has_no_cause_but_what_took_longest() -> None:
    assert diagnose(sample_trace()).sentence.startswith("most of the time: worker: 40 decode steps")


def test_failed_request_says_so_first() -> None:
    spans = sample_trace()
    attributes = {**spans[0].attributes, "millrace.error.reason": "UNAVAILABLE"}
    root = replace(spans[0], status="ERROR", attributes=attributes, status_message="gone")

    sentence = diagnose([root, *spans[1:]]).sentence

    assert sentence.startswith("failed: UNAVAILABLE: gone; most of the time: worker")


@pytest.mark.parametrize(
    ("reason", "message", "cause", "sentence"),
    [
        (
            "CONTEXT_LENGTH_EXCEEDED",
            "too long",
            Cause.CLIENT_ERROR,
            "refused: CONTEXT_LENGTH_EXCEEDED: too long (client error)",
        ),
        (
            "MODEL_NOT_FOUND",
            "no model x",
            Cause.CLIENT_ERROR,
            "refused: MODEL_NOT_FOUND: no model x (client error)",
        ),
        ("UNAVAILABLE", "no worker", Cause.REFUSED, "refused: UNAVAILABLE: no worker"),
        # As spans of before said it.
        ("OVERLOADED", "OVERLOADED", Cause.REFUSED, "refused: OVERLOADED"),
    ],
)
def test_refused_request_tells_its_error_and_nothing_else(
    reason: str, message: str, cause: Cause, sentence: str
) -> None:
    root = replace(
        sample_trace()[0],
        status="ERROR",
        status_message=message,
        attributes={"millrace.error.reason": reason},
    )

    diagnosis = diagnose([root, *sample_trace(SampleTimings(encode_s=2.0))[1:3]])

    assert (diagnosis.cause, diagnosis.sentence) == (cause, sentence)


def test_broken_trace_is_still_diagnosed() -> None:
    spans = [span for span in sample_trace() if span.service in ("gateway", "worker")]

    assert diagnose(spans).cause is Cause.WORKER


def test_request_that_shares_a_run_names_the_other_one() -> None:
    root = sample_trace()[0]
    attributes = {**root.attributes, "millrace.shared_with": "a" * 32}

    diagnosis = diagnose([replace(root, attributes=attributes)])

    assert diagnosis.cause is Cause.SHARED
    assert f"for the answer to request {'a' * 32}, which has its key" in diagnosis.sentence


def test_no_spans_is_an_error() -> None:
    with pytest.raises(ValueError, match="no spans"):
        diagnose([])


def test_seconds_and_milliseconds() -> None:
    assert [format_s(s) for s in (0.0, 0.0123, 0.9994, 0.9996, 12.345)] == [
        *("0.0 ms", "12.3 ms", "999.4 ms", "1.00 s", "12.35 s")
    ]
