"""The span collector: what it takes, keeps, forwards and refuses."""

from __future__ import annotations

import asyncio
import gzip
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from millrace.core.url import HttpUrl
from millrace.telemetry.collector.destination import OtlpDestination, UiDestination
from millrace.telemetry.collector.forwarder import REST_S, Forwarder
from millrace.telemetry.collector.receiver import PROTOBUF, Receiver, gunzip
from millrace.telemetry.collector.ui_body import ATTR_PROJECT, LINKED_STEP, PROJECT, fit_for_ui
from millrace.telemetry.http_server import HttpRequest, HttpResponse, HttpServer
from millrace.telemetry.logs import LineFormatter
from millrace.telemetry.names import ATTR_STACK_ID
from millrace.telemetry.otlp import parse_request, records_of
from millrace.telemetry.otlp_settings import read_export_settings
from millrace.telemetry.store import TraceStore
from millrace.telemetry.trace_writer import TraceWriter
from millrace.telemetry.tracing_ui import RunningUi, UiFolder
from millrace.testing.sample_trace import (
    SampleTimings,
    otlp_body,
    sample_steps,
    sample_trace,
)

LIMIT = 1 << 20


@asynccontextmanager
async def _receiver(tmp_path: Path, url: str = "") -> AsyncIterator[Receiver]:
    forwarder = _to_ui(url)
    receiver = Receiver(TraceWriter(tmp_path / "spans.db"), forwarder, max_body_bytes=LIMIT)
    try:
        yield receiver
    finally:
        await receiver.close()
        await forwarder.close()


def _to_ui(url: str, **options: Any) -> Forwarder:
    """An empty `url`: there is no UI."""
    return Forwarder(UiDestination(lambda: HttpUrl(url) if url else None), **options)


@asynccontextmanager
async def _tracing_ui(
    status: int = 200, gate: asyncio.Event | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A UI that keeps the bodies it gets; with `gate` it answers once that is set."""
    bodies: list[bytes] = []

    async def answer(request: HttpRequest) -> HttpResponse:
        bodies.append(request.body)
        if gate is not None:
            await gate.wait()
        return HttpResponse(status)

    server = HttpServer(answer, max_body_bytes=LIMIT)
    await server.start("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.port}", bodies
    finally:
        await server.close()


def _post(body: bytes, **headers: str) -> HttpRequest:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return HttpRequest("POST", "/v1/traces", {"content-type": PROTOBUF} | named, body)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_spans_are_stored(tmp_path: Path, encoding: str) -> None:
    body = otlp_body(sample_trace())
    packed = gzip.compress(body) if encoding else body
    async with _receiver(tmp_path) as receiver:
        answer = await receiver.answer(_post(packed, content_encoding=encoding))

    assert answer.status == 200
    with closing(TraceStore(tmp_path / "spans.db")) as store:
        loaded = store.load(store.latest(1)[0])
    assert {span.service for span in loaded.spans} >= {
        "gateway",
        "tokenizer",
        "scheduler",
        "worker",
    }


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (_post(b"garbage"), 400),
        (_post(b"\x0a\xff\xff\xff"), 400),
        (_post(b"not gzip", content_encoding="gzip"), 400),
        (_post(gzip.compress(b"garbage"), content_encoding="gzip"), 400),
        (_post(gzip.compress(otlp_body(sample_trace()))[:-20], content_encoding="gzip"), 400),
        (_post(gzip.compress(bytes(LIMIT * 2)), content_encoding="gzip"), 400),
        (_post(b"", content_encoding="br"), 415),
        (_post(b"{}", content_type="application/json"), 415),
        (HttpRequest("GET", "/v1/traces", {}, b""), 405),
        (HttpRequest("POST", "/other", {}, b""), 404),
        (HttpRequest("GET", "/health", {}, b""), 200),
        (_post(b""), 200),
    ],
)
async def test_garbage_is_refused_and_survived(
    tmp_path: Path, request_: HttpRequest, status: int
) -> None:
    async with _receiver(tmp_path) as receiver:
        assert (await receiver.answer(request_)).status == status
        assert (await receiver.answer(_post(otlp_body(sample_trace())))).status == 200


def test_unpacked_size_is_limited() -> None:
    with pytest.raises(ValueError, match="over 100 bytes"):
        gunzip(gzip.compress(bytes(101)), 100)
    assert gunzip(gzip.compress(bytes(99)), 100) == bytes(99)


async def test_spans_reach_the_tracing_ui(tmp_path: Path) -> None:
    async with _tracing_ui() as (url, bodies), _receiver(tmp_path, url) as receiver:
        await receiver.answer(_post(otlp_body(sample_trace())))
        await _until(lambda: bodies)

    names = {span.name for span in records_of(parse_request(bodies[0]))}
    assert {"chat smollm2", "prefill · worker", "Encode · tokenizer"} <= names


async def test_slow_ui_does_not_slow_the_answer(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with _tracing_ui(gate=gate) as (url, bodies), _receiver(tmp_path, url) as receiver:
        async with asyncio.timeout(5):
            for number in range(1, 20):
                answer = await receiver.answer(_post(otlp_body(sample_trace(number=number))))
                assert answer.status == 200
        assert len(bodies) <= 1
        gate.set()
        await _until(lambda: len(bodies) == 19)


async def test_absent_ui_is_tried_again_after_a_rest_and_not_before() -> None:
    now = [0.0]
    async with _tracing_ui() as (url, _):
        pass
    forwarder = _to_ui(url, clock=lambda: now[0])
    forwarder.offer(b"lost")
    await _until(lambda: not forwarder.is_open)
    forwarder.offer(b"lost too")
    assert forwarder.num_dropped == 2

    server = HttpServer(_accept_all)
    await server.start("127.0.0.1", int(url.rsplit(":", 1)[1]))
    try:
        forwarder.offer(b"still resting")
        now[0] += REST_S
        forwarder.offer(b"sent")
        await _until(lambda: forwarder.num_forwarded)
    finally:
        await server.close()
    assert (forwarder.num_forwarded, forwarder.num_dropped) == (1, 3)


async def _accept_all(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200)


async def test_forwarding_queue_is_bounded() -> None:
    gate = asyncio.Event()
    async with _tracing_ui(gate=gate) as (url, bodies):
        forwarder = _to_ui(url)
        for _ in range(40):
            forwarder.offer(bytes(500_000))
        await _until(lambda: bodies)
        assert forwarder.num_dropped >= 20
        gate.set()
        await _until(lambda: forwarder.num_forwarded + forwarder.num_dropped == 40)
        await forwarder.close()


async def test_ui_that_speaks_no_http_is_survived() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"what?\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        forwarder = _to_ui(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        forwarder.offer(b"x")
        await _until(lambda: forwarder.num_dropped == 1)


@pytest.mark.parametrize("url", ["https://x", "ftp://x", "nonsense", "http://"])
def test_url_that_cannot_be_forwarded_to_is_refused(tmp_path: Path, url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "millrace.telemetry.collector", "--forward-url", url],
        env={"MILLRACE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    assert "forward" in ended.stderr and "Traceback" not in ended.stderr


def test_batch_step_appears_in_the_traces_of_its_members() -> None:
    spans = sample_trace()
    steps = sample_steps(spans, count=2)
    request = parse_request(otlp_body([*spans, *steps]))

    fitted = ExportTraceServiceRequest.FromString(fit_for_ui(request))

    process = next(span for span in spans if span.name.startswith("process"))
    linked = [span for span in records_of(fitted) if span.name.startswith(LINKED_STEP)]
    assert [span.parent_id for span in linked] == [process.span_id] * 2
    assert {span.trace_id for span in linked} == {process.trace_id}
    assert {span.attributes["millrace.step.trace_id"] for span in linked} == {
        step.trace_id for step in steps
    }
    assert len({span.span_id for span in linked}) == 2


def test_spans_are_named_with_their_service_and_calls_without_their_package() -> None:
    request = parse_request(otlp_body(sample_trace(SampleTimings(look_up_s=0.001))))

    fitted = ExportTraceServiceRequest.FromString(fit_for_ui(request))

    shown = {span.name for span in records_of(fitted)}
    assert {"LookUp · cache", "Encode · gateway", "Encode · tokenizer", "decode · worker"} <= shown
    assert "process mr.v1.req · scheduler" in shown


async def test_process_prints_ready_stores_and_ends_on_sigterm(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "millrace.telemetry.collector", "--port", "0"),
        env={"MILLRACE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        async with asyncio.timeout(20):
            ready = (await process.stdout.readline()).decode().split()
            assert ready[-3:-1] == ["ready", "collector"]
            host, port = ready[-1].split(":")
            body = otlp_body(sample_trace())
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
            )
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            process.send_signal(signal.SIGTERM)
            errors = await process.stderr.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert b"Traceback" not in errors
    with closing(TraceStore(tmp_path / "run" / "spans.db")) as store:
        assert len(store.latest(10)) == 1


async def test_process_refuses_an_address_beyond_loopback(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "millrace.telemetry.collector", "--host", "0.0.0.0"),
        env={"MILLRACE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 1
    assert b"0.0.0.0" in errors and b"loopback" in errors


async def test_http_server_reads_chunks_and_keeps_the_connection() -> None:
    bodies = []

    async def answer(request: HttpRequest) -> HttpResponse:
        bodies.append(request.body)
        return HttpResponse(200, b"ok")

    server = HttpServer(answer, max_body_bytes=100)
    await server.start("127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        chunked = (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        writer.write(chunked + b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nxy")
        await _until(lambda: len(bodies) == 2)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n")
        tail = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    finally:
        await server.close()

    assert bodies == [b"abcde", b"xy"]
    assert b"HTTP/1.1 413" in tail


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_http_server_refuses_what_is_not_http(raw: bytes) -> None:
    server = HttpServer(_accept_all)
    await server.start("127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    finally:
        await server.close()

    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


class Backend:
    """An OTLP/HTTP endpoint that keeps what it gets."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.requests: list[HttpRequest] = []

    async def answer(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        return HttpResponse(self.status)


@asynccontextmanager
async def _backend(
    tmp_path: Path, **variables: str
) -> AsyncIterator[tuple[Backend, Receiver, Forwarder]]:
    """A collector that sends on to a backend which wants a password."""
    backend = Backend()
    server = HttpServer(backend.answer, max_body_bytes=LIMIT)
    await server.start("127.0.0.1", 0)
    endpoint = f"http://bob:hunter2@127.0.0.1:{server.port}"
    settings = read_export_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **variables})
    assert settings is not None
    otlp = Forwarder(OtlpDestination(settings), timeout_s=5.0)
    writer = TraceWriter(tmp_path / "spans.db")
    receiver = Receiver(writer, _to_ui(""), otlp, max_body_bytes=LIMIT)
    try:
        yield backend, receiver, otlp
    finally:
        await receiver.close()
        await otlp.close()
        await server.close()


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_spans_are_kept_and_sent_on_as_they_came(tmp_path: Path, compression: str) -> None:
    body = otlp_body(sample_trace())
    variables = {
        "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=red%20team",
    }
    async with _backend(tmp_path, **variables) as (backend, receiver, otlp):
        await receiver.answer(_post(gzip.compress(body), content_encoding="gzip"))
        await _until(lambda: otlp.num_forwarded)

    (request,) = backend.requests
    sent = gzip.decompress(request.body) if compression == "gzip" else request.body
    assert (request.path, sent) == ("/v1/traces", body)
    assert request.headers["x-tenant"] == "red team"
    assert request.headers["authorization"] == f"Basic {b64encode(b'bob:hunter2').decode()}"
    with closing(TraceStore(tmp_path / "spans.db")) as store:
        assert len(store.latest(10)) == 1


async def test_a_backend_that_refuses_is_named_once_and_without_its_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with _backend(tmp_path) as (backend, receiver, otlp):
        backend.status = 401
        for number in range(3):
            await receiver.answer(_post(otlp_body(sample_trace(number=number))))
        await _until(lambda: otlp.num_dropped >= 1)
        assert not otlp.is_open

    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    (warning,) = [LineFormatter("collector").format(record) for record in warnings]
    assert "takes no spans" in warning and "HTTP 401" in warning and "127.0.0.1" in warning
    assert "hunter2" not in warning


async def test_a_body_that_is_refused_does_not_hold_up_the_next(tmp_path: Path) -> None:
    async with _backend(tmp_path) as (backend, receiver, otlp):
        backend.status = 400
        await receiver.answer(_post(otlp_body(sample_trace())))
        await _until(lambda: otlp.num_dropped)
        backend.status = 200
        await receiver.answer(_post(otlp_body(sample_trace())))
        await _until(lambda: otlp.num_forwarded)


def test_a_stack_forwards_to_the_ui_of_its_own_home_and_only_while_that_runs(
    tmp_path: Path,
) -> None:
    ours, other = UiFolder(tmp_path / "a"), UiFolder(tmp_path / "b")
    for folder in (ours, other):
        folder.python.parent.mkdir(parents=True)
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", str(ours.python)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert sleeper.stdout is not None
    try:
        # Its arguments can be read once it runs.
        sleeper.stdout.readline()
        running = RunningUi(sleeper.pid, 6006)
        for folder in (ours, other):
            folder.write_running(running)
        assert ours.running() == running
        # Its number, and another's program.
        assert other.running() is None
    finally:
        sleeper.communicate()
    assert ours.running() is None


def test_every_stack_has_projects_of_its_own() -> None:
    request = parse_request(otlp_body(sample_trace()))
    pair = request.resource_spans[0].resource.attributes.add(key=ATTR_STACK_ID)
    pair.value.string_value = "ab12"

    fitted = ExportTraceServiceRequest.FromString(fit_for_ui(request))

    projects = {
        attribute.value.string_value
        for resource_spans in fitted.resource_spans
        for attribute in resource_spans.resource.attributes
        if attribute.key == ATTR_PROJECT
    }
    assert f"{PROJECT}-ab12" in projects
