"""What a tracing UI is told: kinds, texts, status, and the requests of before."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from millrace.cli import trace_ui
from millrace.cli.pip_install import PipProgress, pip_install
from millrace.config.home import Home
from millrace.core.errors import Unavailable
from millrace.telemetry.collector.replay import PER_BODY, replay_bodies
from millrace.telemetry.collector.ui_body import (
    ATTR_PROJECT,
    LINKED_STEP,
    PROJECT,
    STEP_PROJECT,
    fit_for_ui,
)
from millrace.telemetry.http_server import HttpRequest, HttpResponse, HttpServer
from millrace.telemetry.names import ATTR_INPUT_MESSAGES, ATTR_OUTPUT_MESSAGES
from millrace.telemetry.otlp import decode_spans, parse_request, records_of
from millrace.telemetry.otlp_encode import export_request
from millrace.telemetry.span_record import SpanRecord
from millrace.telemetry.store import STORE_FILE, TraceStore
from millrace.telemetry.trace_writer import TraceWriter
from millrace.telemetry.tracing_ui import ui_folder
from millrace.testing.sample_trace import SampleTimings, otlp_body, sample_steps, sample_trace

NUM_STORED = 25
STACK_ID = "0123abcd"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = Home(tmp_path).run / STORE_FILE
    with closing(TraceWriter(path)) as writer:
        for number in range(1, NUM_STORED + 1):
            spans = sample_trace(number=number)
            writer.add([*spans, *sample_steps(spans, number=number)])
    return path


def _shown(spans: list[SpanRecord]) -> list[SpanRecord]:
    request = parse_request(otlp_body(spans))
    return records_of(ExportTraceServiceRequest.FromString(fit_for_ui(request)))


def test_records_come_back_from_the_wire_as_they_were() -> None:
    spans = sample_trace(SampleTimings(preempted_s=0.1, look_up_s=0.1))
    told = replace(spans[0], attributes={**spans[0].attributes, "list": ["a", "b"], "yes": True})

    body = export_request([told, *spans[1:]]).SerializeToString()

    found = {span.span_id: span for span in decode_spans(body)}
    assert found == {span.span_id: span for span in [told, *spans[1:]]}


def test_request_is_shown_as_a_generation_and_the_rest_as_its_chain() -> None:
    kinds = {
        span.name: span.attributes["openinference.span.kind"] for span in _shown(sample_trace())
    }

    assert kinds.pop("chat smollm2") == "LLM"
    assert set(kinds.values()) == {"CHAIN"}


def test_status_is_set_everywhere_and_an_error_stays_one() -> None:
    spans = sample_trace()
    spans[1] = replace(spans[1], status="ERROR")

    assert [span.status for span in _shown(spans)].count("ERROR") == 1
    assert {span.status for span in _shown(spans)} == {"OK", "ERROR"}


def test_without_content_there_is_neither_input_nor_output() -> None:
    spans = sample_trace()
    attributes = {"gen_ai.response.id": "x", "gen_ai.response.model": "smollm2"}
    spans[0] = replace(spans[0], attributes={**spans[0].attributes, **attributes})

    root = next(span for span in _shown(spans) if span.name == "chat smollm2")

    assert not {"input.value", "output.value"} & root.attributes.keys()
    # The UI would make an output of these.
    assert not attributes.keys() & root.attributes.keys()


def _messages(*said: str) -> str:
    return json.dumps([{"role": "x", "parts": [{"type": "text", "content": s}]} for s in said])


def test_content_is_shown_as_input_and_output() -> None:
    spans = sample_trace()
    content = {
        ATTR_INPUT_MESSAGES: _messages("be kind", "hello?"),
        ATTR_OUTPUT_MESSAGES: _messages("Hello.", "Hi."),
    }
    spans[0] = replace(spans[0], attributes={**spans[0].attributes, **content})

    root = next(span for span in _shown(spans) if span.name == "chat smollm2")

    assert root.attributes["input.value"] == "hello?"
    assert root.attributes["output.value"] == "Hello.\n\nHi."


@pytest.mark.parametrize("broken", ["{", "{}", "[1]", '[{"parts": 1}]', '[{"parts": [{}]}]'])
def test_content_that_is_none_is_left_out(broken: str) -> None:
    spans = sample_trace()
    spans[0] = replace(spans[0], attributes={**spans[0].attributes, ATTR_INPUT_MESSAGES: broken})

    assert all("input.value" not in span.attributes for span in _shown(spans))


def _replayed(path: Path, after_seq: int = 0, most: int = 200) -> Iterator[tuple[int, bytes]]:
    with closing(TraceStore(path)) as store:
        yield from replay_bodies(store, STACK_ID, after_seq, most)


def test_replay_is_whole_newest_first_and_bounded(stored: Path) -> None:
    bodies = list(_replayed(stored))
    assert [count for count, _ in bodies] == [PER_BODY, PER_BODY, 5]
    first = records_of(ExportTraceServiceRequest.FromString(bodies[0][1]))
    newest = sample_trace(number=NUM_STORED)
    mine = [span for span in first if span.trace_id == newest[0].trace_id]
    assert {span.span_id for span in newest} <= {span.span_id for span in mine}
    assert sum(span.name.startswith(LINKED_STEP) for span in mine) == 4

    projects = {
        pair.value.string_value
        for resource_spans in ExportTraceServiceRequest.FromString(bodies[0][1]).resource_spans
        for pair in resource_spans.resource.attributes
        if pair.key == ATTR_PROJECT
    }
    assert projects == {f"{PROJECT}-{STACK_ID}", f"{STEP_PROJECT}-{STACK_ID}"}

    assert sum(count for count, _ in _replayed(stored, most=7)) == 7
    assert sum(count for count, _ in _replayed(stored, after_seq=NUM_STORED - 3)) == 3


@asynccontextmanager
async def _fake_ui() -> AsyncIterator[tuple[int, list[HttpRequest]]]:
    """Takes what a tracing UI takes."""
    taken: list[HttpRequest] = []

    async def answer(request: HttpRequest) -> HttpResponse:
        taken.append(request)
        return HttpResponse(200)

    server = HttpServer(answer, max_body_bytes=8 << 20)
    await server.start("127.0.0.1", 0)
    try:
        yield server.port, taken
    finally:
        await server.close()


async def test_ui_gets_what_it_has_not_got_before(stored: Path, tmp_path: Path) -> None:
    home = Home(tmp_path)
    ui_folder(home).root.mkdir()
    async with _fake_ui() as (port, taken):
        first = await asyncio.to_thread(trace_ui.replay, home, port)
        again = await asyncio.to_thread(trace_ui.replay, home, port)
        with closing(TraceWriter(stored)) as writer:
            writer.add(sample_trace(number=99))
        later = await asyncio.to_thread(trace_ui.replay, home, port)
        await asyncio.to_thread(stored.unlink)
        with closing(TraceWriter(stored)) as writer:
            writer.add(sample_trace(number=100))
        anew = await asyncio.to_thread(trace_ui.replay, home, port)

    assert (first, again, later, anew) == (NUM_STORED, 0, 1, 1)
    assert {(each.method, each.path) for each in taken} == {("POST", "/v1/traces")}
    assert {each.headers["content-type"] for each in taken} == {"application/x-protobuf"}


async def test_ui_that_takes_nothing_is_survived(stored: Path, tmp_path: Path) -> None:
    home = Home(tmp_path)
    ui_folder(home).root.mkdir()

    assert await asyncio.to_thread(trace_ui.replay, home, 1) == 0
    await asyncio.to_thread(stored.unlink)
    assert await asyncio.to_thread(trace_ui.replay, home, 1) == 0


PIP = """\
Collecting arize-phoenix==20.26.1
  Downloading arize_phoenix-20.26.1-py3-none-any.whl.metadata (25 kB)
Collecting numpy (from arize-phoenix==20.26.1)
  Downloading numpy-2.4.6-cp311-cp311-manylinux_2_17_x86_64.whl (16.8 MB)
  Using cached arize_phoenix-20.26.1-py3-none-any.whl (5.2 MB)
"""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_of_pip_is_one_line() -> None:
    screen = _Terminal()
    progress = PipProgress(screen, Path("install.log"))
    for line in PIP.splitlines(keepends=True):
        progress.hear(line)
    assert progress.text.startswith("downloading: 2 of 2 packages, 22 MB, 0 s, arize_phoenix")
    progress.hear("Installing collected packages: numpy, arize-phoenix\n")
    assert progress.text == "installing 2 packages, 0 s"
    progress.hear("Successfully installed arize-phoenix-20.26.1 numpy-2.4.6\n")
    progress.end()

    assert screen.getvalue().count("\n") == 1
    assert screen.getvalue().endswith("installed 2 packages in 0 s (log: install.log)\x1b[K\n")


def test_words_of_pip_are_kept_and_its_last_are_told(tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\nprint('Collecting x')\nprint('no such x')\nexit(3)\n")
    fake.chmod(0o755)

    with pytest.raises(Unavailable, match=r"pip ended with status 3; see .*install.log") as caught:
        pip_install(fake, ["x"], log, {})

    assert "no such x" in caught.value.message
    assert log.read_text() == "Collecting x\nno such x\n"
