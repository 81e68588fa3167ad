"""The drawing, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from millrace.telemetry.diagnosis import diagnose
from millrace.telemetry.names import SPAN_PROCESS
from millrace.telemetry.span_record import SpanRecord
from millrace.telemetry.store import RequestTrace
from millrace.telemetry.waterfall import draw
from millrace.testing.sample_trace import SampleTimings, sample_steps, sample_trace

GOLDEN_ASCII = """\
chat smollm2  459.0 ms  ok
request 00000001abababababababababababab
trace   00000000000000010000000000000000

chat smollm2                 gateway       0.0 ms  459.0 ms #############################
  TokenizerService/Encode    gateway       0.0 ms   20.0 ms #
    TokenizerService/Encode  tokenizer     0.0 ms   20.0 ms #
  send mr.v1.req             gateway      20.0 ms    1.0 ms  |
    process mr.v1.req        scheduler    21.0 ms  437.0 ms  ############################
      (queued +0.0 ms, admitted +5.0 ms, first_token +37.0 ms, finished +437.0 ms)
      queue_wait             scheduler    21.0 ms    5.0 ms  #
      prefill                worker       26.0 ms   32.0 ms  ###
      decode                 worker       58.0 ms  400.0 ms    ##########################
  detokenize                 gateway      21.0 ms  437.0 ms  ############################

batch steps: 2 sampled (2 decode), mean batch 8.0 rows, 10.0 ms each
most of the time: worker: 40 decode steps of 10.0 ms each took 400.0 ms of 459.0 ms (87%), in \
batches of 8.0 rows on average"""


def _draw(
    spans: Sequence[SpanRecord],
    steps: Sequence[SpanRecord] = (),
    *,
    width: int = 90,
    is_unicode: bool = False,
) -> list[str]:
    diagnosis = diagnose(spans, steps)
    return draw(RequestTrace(spans, steps), diagnosis, width=width, is_unicode=is_unicode)


def test_ascii_drawing_is_the_golden_one() -> None:
    spans = sample_trace(SampleTimings(encode_s=0.02, prefill_s=0.032))

    assert "\n".join(_draw(spans, sample_steps(spans, count=2))) == GOLDEN_ASCII


def test_unicode_bars_have_eighths_and_end_at_the_width() -> None:
    lines = _draw(sample_trace(), width=100, is_unicode=True)

    bars = [line for line in lines if "█" in line]
    assert max(map(len, bars)) <= 100
    assert any(part in "".join(lines) for part in "▏▎▍▌▋▊▉")
    assert not any("#" in line for line in lines)


def test_narrow_terminal_keeps_a_bar() -> None:
    lines = _draw(sample_trace(), width=20)

    assert lines[4].endswith("#" * 12)


def test_event_shows_why_a_row_was_lost() -> None:
    spans = sample_trace(SampleTimings(preempted_s=0.1))
    process = next(span for span in spans if span.name == SPAN_PROCESS)
    lost = next(event for event in process.events if event.name == "preempted")
    told = replace(lost, attributes={"millrace.reason": "worker_lost"})
    events = [told if event is lost else event for event in process.events]
    spans[spans.index(process)] = replace(process, events=events)

    assert any("preempted worker_lost +" in line for line in _draw(spans))


def test_span_that_lost_its_parent_is_drawn_below_the_root() -> None:
    spans = sample_trace()
    orphan = replace(spans[-1], span_id="f" * 16, parent_id="e" * 16, name="lost child")

    assert any(line.startswith("  lost child") for line in _draw([*spans, orphan]))


def test_failed_span_is_marked() -> None:
    spans = sample_trace()
    spans[-2] = replace(spans[-2], status="ERROR")

    assert sum(" !" in line for line in _draw(spans)) == 1


def test_long_name_is_cut() -> None:
    spans = sample_trace(model="m" * 200)

    assert "mm..  gateway" in _draw(spans)[4]


def test_spans_outside_the_root_are_drawn_at_its_edge() -> None:
    spans = sample_trace()
    late = replace(spans[-1], start_ns=spans[0].end_ns + 10**9, end_ns=spans[0].end_ns + 2 * 10**9)
    early = replace(spans[-1], start_ns=spans[0].start_ns - 10**9, span_id="f" * 16)

    lines = _draw([*spans[:-1], late, early], width=100)

    assert max(len(line) for line in lines[4:16] if "(" not in line) <= 100


def test_without_steps_it_says_none_were_sampled() -> None:
    assert "batch steps: none sampled" in _draw(sample_trace())
