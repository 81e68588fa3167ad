"""The span store: what it keeps, what it forgets, how it is searched."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from millrace.core.errors import InvalidRequest, RequestNotFound, Unavailable
from millrace.telemetry.span_record import SpanRecord
from millrace.telemetry.store import TraceStore
from millrace.telemetry.trace_writer import MAX_SPANS_PER_TRACE, TraceWriter
from millrace.testing.sample_trace import SampleTimings, sample_steps, sample_trace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "spans.db"


def _write(path: Path, *batches: Sequence[SpanRecord], **bounds: int) -> None:
    with closing(TraceWriter(path, **bounds)) as writer:
        for spans in batches:
            writer.add(spans)


def test_trace_comes_back_as_it_went_in(path: Path) -> None:
    spans = sample_trace(SampleTimings(look_up_s=0.001))
    _write(path, spans)

    with closing(TraceStore(path)) as store:
        loaded = store.load(store.find(spans[0].trace_id))

    assert {span.span_id: span for span in loaded.spans} == {span.span_id: span for span in spans}
    assert loaded.spans[0] == spans[0]


def test_request_is_found_by_request_id_trace_id_and_prefix(path: Path) -> None:
    spans = sample_trace(number=0x1234)
    _write(path, spans)

    with closing(TraceStore(path)) as store:
        request_id = store.latest(1)[0].request_id
        trace_id, span_id = spans[0].trace_id, spans[0].span_id
        as_told = (f"chatcmpl-{request_id}", f"cmpl-{request_id}", f"00-{trace_id}-{span_id}-03")
        prefixes = (request_id, request_id[:8], trace_id, request_id[:8].upper())
        for wanted in (*prefixes, *as_told, f"chatcmpl-{request_id[:8]}"):
            assert store.find(wanted).span_id == span_id


def test_prefix_that_fits_several_is_refused(path: Path) -> None:
    _write(path, sample_trace(number=0x1001), sample_trace(number=0x1002))

    with closing(TraceStore(path)) as store, pytest.raises(InvalidRequest, match="fits 2"):
        store.find("000010")


@pytest.mark.parametrize("wanted", ["abc", "nothex!", "", "%%%%%%"])
def test_what_is_no_id_is_refused(path: Path, wanted: str) -> None:
    _write(path, sample_trace())

    with closing(TraceStore(path)) as store, pytest.raises(InvalidRequest):
        store.find(wanted)


def test_unknown_id_is_not_found(path: Path) -> None:
    _write(path, sample_trace())

    with closing(TraceStore(path)) as store, pytest.raises(RequestNotFound):
        store.find("abcdef99")


def test_oldest_requests_are_forgotten_with_their_spans(path: Path) -> None:
    _write(path, *[sample_trace(number=n) for n in range(1, 31)], max_requests=20)

    with closing(TraceStore(path)) as store:
        kept = store.latest(100)
        assert len(kept) == 20
        assert kept[0].trace_id == sample_trace(number=30)[0].trace_id
        assert store.spans(sample_trace(number=10)[0].trace_id) == []
        assert store.spans(sample_trace(number=11)[0].trace_id) != []


def test_traces_without_a_request_do_not_push_requests_out(path: Path) -> None:
    stray = [replace(sample_trace(number=n)[3], attributes={}) for n in range(100, 200)]
    _write(path, sample_trace(number=1), stray, max_requests=5, max_other_traces=10)

    with closing(TraceStore(path)) as store:
        assert len(store.latest(100)) == 1
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM traces").fetchone() == (11,)


def _refused(number: int, name: str = "POST /v1/chat/completions") -> SpanRecord:
    root = sample_trace(number=number)[0]
    attributes = {"millrace.request_id": f"{number:032x}", "millrace.error.reason": "X"}
    return replace(root, name=name, status="ERROR", attributes=attributes)


@pytest.mark.parametrize("name", ["chat", "chat smollm2", "GET unknown", "POST /generate"])
def test_refused_request_is_found_by_its_id(path: Path, name: str) -> None:
    _write(path, [_refused(0xABCDEF, name)])

    with closing(TraceStore(path)) as store:
        assert store.find(f"{0xABCDEF:032x}").name == name


@pytest.mark.parametrize("is_child_first", [True, False])
def test_storm_of_refusals_pushes_no_request_out(path: Path, is_child_first: bool) -> None:
    storm = []
    for number in range(100, 200):
        child = replace(sample_trace(number=number)[2], parent_id="f" * 16)
        pair = [[child], [_refused(number)]]
        storm += pair if is_child_first else pair[::-1]
    bounds = {"max_requests": 5, "max_refused": 10, "max_other_traces": 3}
    _write(path, sample_trace(number=1), *storm, sample_trace(number=2), **bounds)

    with closing(TraceStore(path)) as store:
        kept = [int(item.trace_id, 16) >> 64 for item in store.latest(100)]
    assert kept == [2, *range(199, 189, -1), 1]


def test_refusal_in_the_trace_of_a_request_is_kept_with_it(path: Path) -> None:
    request = sample_trace(number=1)
    refused = replace(_refused(7), trace_id=request[0].trace_id)
    _write(path, request, [refused], *[[_refused(n)] for n in range(100, 200)], max_refused=10)

    with closing(TraceStore(path)) as store:
        assert store.find(f"{7:032x}").trace_id == request[0].trace_id


def test_batch_is_found_by_its_own_id_and_by_those_of_its_parts(path: Path) -> None:
    part = sample_trace(number=2)
    attributes = {"millrace.request_id": f"{1:032x}"}
    root = replace(part[0], name="text_completion", attributes=attributes, span_id="f" * 16)
    _write(path, [replace(part[0], parent_id=root.span_id), *part[1:], root])

    with closing(TraceStore(path)) as store:
        whole, mine = store.find(f"{1:032x}"), store.find(part[0].attributes["millrace.request_id"])
        assert len(store.load(whole).spans) == len(part) + 1
        assert len(store.load(mine).spans) == len(part)


def test_spans_below_one_that_was_lost_still_belong_to_the_request(path: Path) -> None:
    spans = sample_trace()
    process = next(span for span in spans if span.name.startswith("process"))
    _write(path, [span for span in spans if span is not process])

    with closing(TraceStore(path)) as store:
        loaded = store.load(store.latest(1)[0]).spans
    assert {span.name for span in loaded} >= {"queue_wait", "prefill", "decode"}
    assert loaded[0] == spans[0]


def test_steps_are_bounded_apart_and_found_by_member(path: Path) -> None:
    spans = sample_trace()
    steps = sample_steps(spans, count=30)
    _write(path, spans, steps, max_steps=10)

    with closing(TraceStore(path)) as store:
        found = store.load(store.latest(1)[0]).steps
    with closing(sqlite3.connect(path)) as connection:
        num_links = connection.execute("SELECT count(*) FROM step_links").fetchone()[0]
    assert [step.span_id for step in found] == [step.span_id for step in steps[-10:]]
    assert num_links == 10


def test_steps_of_other_requests_are_not_shown(path: Path) -> None:
    mine, other = sample_trace(number=1), sample_trace(number=2)
    _write(path, mine, other, sample_steps(other))

    with closing(TraceStore(path)) as store:
        assert store.load(store.find(mine[0].trace_id)).steps == []


def test_spans_that_arrive_in_pieces_and_twice_make_one_trace(path: Path) -> None:
    spans = sample_trace()
    _write(path, spans[5:], spans[:5], spans)

    with closing(TraceStore(path)) as store:
        assert len(store.latest(10)) == 1
        assert len(store.spans(spans[0].trace_id)) == len(spans)


def test_one_trace_cannot_grow_without_end(path: Path) -> None:
    base = sample_trace()[3]
    flood = [replace(base, span_id=f"{n + 1:016x}") for n in range(MAX_SPANS_PER_TRACE + 50)]
    _write(path, flood)

    with closing(TraceStore(path)) as store:
        assert len(store.spans(base.trace_id)) == MAX_SPANS_PER_TRACE


def test_slowest_come_first(path: Path) -> None:
    lengths = {1: 0.1, 2: 0.9, 3: 0.5}
    _write(path, *[sample_trace(SampleTimings(decode_s=s), number=n) for n, s in lengths.items()])

    with closing(TraceStore(path)) as store:
        order = [int(item.request_id[:8], 16) for item in store.slowest(2)]

    assert order == [2, 3]


def test_follow_sees_only_later_and_settled_requests(path: Path) -> None:
    _write(path, sample_trace(number=1))
    with closing(TraceStore(path)) as store:
        seq = store.latest(1)[0].seq
        _write(path, sample_trace(number=2))
        assert store.after(seq, arrived_before_ns=0) == []
        later = store.after(seq, arrived_before_ns=time.time_ns() + 1)

    assert [int(item.request_id[:8], 16) for item in later] == [2]


def test_two_requests_in_one_trace_are_two_requests(path: Path) -> None:
    first = sample_trace(number=1)
    second = [replace(span, trace_id=first[0].trace_id) for span in sample_trace(number=2)]
    _write(path, [*first, *second])

    with closing(TraceStore(path)) as store:
        found = store.latest(10)
        assert len(found) == 2
        assert len(store.load(found[0]).spans) == len(second)


def test_damaged_file_is_made_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 100)
    _write(path, sample_trace())

    with closing(TraceStore(path)) as store:
        assert len(store.latest(10)) == 1


def test_file_is_private(path: Path) -> None:
    _write(path, sample_trace())

    assert path.stat().st_mode & 0o077 == 0


def test_missing_store_says_what_makes_one(path: Path) -> None:
    with pytest.raises(Unavailable, match="millrace up"):
        TraceStore(path)
