"""The `millrace` command as a user meets it."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from millrace.cli import __main__ as cli
from millrace.cli.__main__ import VERBS, run_verb
from millrace.cli.console import Console, format_duration
from millrace.config.environment import GRPC_EXPERIMENTS
from millrace.config.home import Home
from millrace.engine.served import ServedMark
from millrace.testing.servers import free_port

HEAVY = ("torch", "grpc", "transformers", "numpy", "nats", "google.protobuf", "asyncio")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "home"))
    # What an older version left there is removed too.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "old-cache"))
    for name in list(os.environ):
        if name.startswith("MILLRACE_") and name != "MILLRACE_HOME":
            monkeypatch.delenv(name)
    return tmp_path / "home"


def test_help_imports_nothing_heavy_and_lists_every_verb() -> None:
    code = (
        "import sys; from millrace.cli.__main__ import overview; print(overview());"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stderr.strip() == "[]"
    assert all(f"  {verb} " in shown.stdout for verb in VERBS)


@pytest.mark.parametrize(("given", "expected"), [(None, GRPC_EXPERIMENTS), ("other", "other")])
def test_grpc_polls_where_events_are_taken_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTS", given or "")
    if given is None:
        monkeypatch.delenv("GRPC_EXPERIMENTS")
    seen: list[str | None] = []
    monkeypatch.setattr(
        cli, "run_verb", lambda verb: seen.append(os.environ.get("GRPC_EXPERIMENTS"))
    )

    with pytest.raises(SystemExit):
        cli.main(["version"])

    assert seen == [expected]


def test_help_is_fast() -> None:
    took_s = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "millrace.cli", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        took_s.append(time.monotonic() - began)

    assert min(took_s) < 0.15


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_verb([verb, "--help"])

    assert caught.value.code == 0
    assert f"millrace {verb}" in capsys.readouterr().out


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(["stauts"]) == 2
    assert capsys.readouterr().err == "millrace: unknown verb stauts; did you mean status?\n"


def test_an_error_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(["config", "show", "gatewya"]) == 1

    shown = capsys.readouterr()
    assert shown.err == "millrace: unknown service gatewya; did you mean gateway?\n"
    assert shown.out == ""


def test_debug_shows_the_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLRACE_DEBUG", "1")

    assert run_verb(["config", "show", "gatewya"]) == 1

    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and "unknown service gatewya" in shown


def test_status_without_a_stack_fails_and_is_json(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(["status", "--json"]) == 1

    report = json.loads(capsys.readouterr().out)
    assert report == {"is_running": False, "gateway": {"is_ready": False}, "processes": []}


def test_config_show_names_value_and_origin(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    (home / "config.toml").write_text("[worker]\nmax_num_seqs = 7\n")
    monkeypatch.setenv("MILLRACE_WORKER_DTYPE", "float32")

    assert run_verb(["config", "show", "worker", "--json"]) == 0

    settings = {item["name"]: item for item in json.loads(capsys.readouterr().out)["worker"]}
    assert (settings["dtype"]["value"], settings["dtype"]["origin"]) == ("float32", "env")
    assert (settings["max_num_seqs"]["value"], settings["max_num_seqs"]["origin"]) == (7, "file")
    assert settings["port"]["origin"] == "default"


def test_doctor_is_json_with_a_level_for_every_check(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_verb(["doctor", "--json"])

    findings = json.loads(capsys.readouterr().out)
    assert {item["level"] for item in findings} <= {"ok", "warn", "fail"}
    found = {item["check"]: item for item in findings}
    assert {"python", "cpu", "memory", "disk", "nats", "valkey", "model"} <= set(found)
    assert found["nats"]["level"] == "ok"
    assert found["model"]["level"] == "warn"
    assert "millrace models pull" in found["model"]["text"]


def test_down_without_a_stack_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(["down"]) == 0
    assert capsys.readouterr().out == "no stack is running\n"


def test_uninstall_asks_and_then_leaves_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / "weights").write_bytes(b"x" * 2048)
    (home / "trace-ui" / "venv").mkdir(parents=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))

    assert run_verb(["uninstall"]) == 1
    assert "say --yes" in capsys.readouterr().err
    assert run_verb(["uninstall", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["items"] == [
        {"path": str(home / "models"), "bytes": 2048},
        {"path": str(home / "trace-ui"), "bytes": 0},
    ]
    assert run_verb(["uninstall", "--yes"]) == 0
    assert not home.exists()


def test_uninstall_takes_what_an_engine_alone_packed_in_the_users_cache(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("weights", "kernels", "thesis"):
        (tmp_path / "old-cache" / "millrace" / name).mkdir(parents=True)
    weights = tmp_path / "old-cache" / "millrace" / "weights"
    (weights / "tiny.bin").write_bytes(b"x" * 1000)

    assert run_verb(["uninstall", "--json"]) == 0
    listed = {item["path"]: item["bytes"] for item in json.loads(capsys.readouterr().out)["items"]}
    assert listed == {str(weights): 1000, str(weights.with_name("kernels")): 0}

    assert run_verb(["uninstall", "--yes"]) == 0
    assert [path.name for path in weights.parent.iterdir()] == ["thesis"]


def test_uninstall_refuses_while_a_worker_alone_serves_a_model(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    mark = ServedMark(folder)

    assert run_verb(["uninstall", "--yes"]) == 1
    assert f"tiny is served by process {os.getpid()}" in capsys.readouterr().err

    del mark
    assert run_verb(["uninstall", "--yes"]) == 0


def test_uninstall_refuses_while_a_tracing_ui_runs(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = home / "trace-ui" / "venv" / "bin" / "python"
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", str(python)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert sleeper.stdout is not None
    # Its arguments can be read once it runs.
    sleeper.stdout.readline()
    python.parent.mkdir(parents=True)
    (home / "trace-ui" / "run.json").write_text(json.dumps({"pid": sleeper.pid, "port": 1}))
    try:
        assert run_verb(["uninstall", "--yes"]) == 1
    finally:
        sleeper.communicate()

    assert re.search("stop it first: .*millrace trace-ui --stop", capsys.readouterr().err)
    assert python.parent.is_dir()


def test_uninstall_keeps_what_is_not_ours(home: Path) -> None:
    (home / "logs").mkdir(parents=True)
    (home / "thesis.tex").write_text("years of work")

    assert run_verb(["uninstall", "--yes"]) == 0

    assert [path.name for path in home.iterdir()] == ["thesis.tex"]


def test_up_beyond_loopback_needs_an_explicit_flag(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from millrace.cli.stack.options import ServedModel, wiring_options
    from millrace.cli.stack.topology import load_topology
    from millrace.cli.up_config import UpConfig
    from millrace.core.errors import ConfigError

    model = ServedModel("m", "m")
    config = UpConfig(host="0.0.0.0", http_port=21_080, grpc_port=21_051)

    with pytest.raises(ConfigError, match="--insecure-bind"):
        wiring_options(config, load_topology(), model, Home(home), {"MILLRACE_HOME": str(home)})


@pytest.mark.parametrize("workers", ["0", "-2"])
def test_up_without_workers_is_refused_before_anything_starts(
    home: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(["up", "--workers", workers]) == 1

    assert f"--workers is {workers}; it must be at least 1" in capsys.readouterr().err


def test_the_gateways_own_port_setting_reaches_up(home: Path) -> None:
    from millrace.cli.stack.options import ServedModel, wiring_options
    from millrace.cli.stack.topology import load_topology
    from millrace.cli.up_config import UpConfig

    environ = {"MILLRACE_HOME": str(home), "MILLRACE_GATEWAY_HTTP_PORT": "21180"}
    config = UpConfig(grpc_port=21_151)

    options = wiring_options(config, load_topology(), ServedModel("m", "m"), Home(home), environ)

    assert options.public_ports == {"http_port": 21180, "grpc_port": 21151}


def test_colours_need_a_terminal_and_no_no_color() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert Console(Terminal(), environ={}).paint("x", "red") == "\x1b[31mx\x1b[0m"
    assert Console(Terminal(), environ={"NO_COLOR": "1"}).paint("x", "red") == "x"
    assert Console(io.StringIO(), environ={}).paint("x", "red") == "x"


def test_durations_are_short() -> None:
    assert [format_duration(s) for s in (5.9, 184, 18_120)] == ["5s", "3m04s", "5h02m"]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test that fetches, converts or builds anything."""

    def fetch(*args: object) -> None:
        pytest.fail("a model was looked for")

    monkeypatch.setattr("millrace.cli.up.find_or_pull", fetch)


def free_ports() -> list[str]:
    return ["--http-port", str(free_port()), "--grpc-port", str(free_port())]


def test_a_busy_port_is_told_before_a_model_is_fetched(
    home: Path, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        for detach in ([], ["--detach"]):
            assert run_verb(["up", *free_ports(), "--http-port", str(port), *detach]) == 1
            shown = capsys.readouterr().err
            assert f"port {port} on 127.0.0.1 is in use by" in shown and "--http-port" in shown


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MILLRACE_WORKER_NUM_BLOCKS", "many", "MILLRACE_WORKER_NUM_BLOCKS: 'many' is not"),
        ("MILLRACE_CACHE_REDIS_URL", "redis://:a#b@h", "MILLRACE_CACHE_REDIS_URL can be read in"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"),
        ("MILLRACE_UP_HOST", "0.0.0.0", "--insecure-bind"),
        ("MILLRACE_HOME", "/dev/null/x", "MILLRACE_HOME is /dev/null/x"),
        ("PATH", "/nowhere", "no nats-server"),
    ],
)
def test_what_needs_no_model_is_checked_before_one_is_fetched(
    home: Path,
    no_model: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(name, value)
    if name == "PATH":
        monkeypatch.setattr("millrace.cli.stack.servers._find_in_package", lambda *args: None)

    assert run_verb(["up", *free_ports()]) == 1
    assert message in capsys.readouterr().err


def test_the_settings_file_that_up_is_given_is_the_services_file_too(
    home: Path, no_model: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.toml"
    path.write_text("[worker]\nnum_blocks = 'many'\n")

    assert run_verb(["up", *free_ports(), "--config", str(path)]) == 1
    assert f"{path}: worker.num_blocks: 'many' is not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "http", "grpc"),
    [
        ("::1", "http://[::1]:1", "[::1]:2"),
        ("::", "http://[::1]:1", "[::1]:2"),
        ("0.0.0.0", "http://127.0.0.1:1", "127.0.0.1:2"),
        ("localhost", "http://localhost:1", "localhost:2"),
    ],
)
def test_endpoints_are_printed_so_that_they_can_be_used(host: str, http: str, grpc: str) -> None:
    from millrace.cli.stack.options import public_endpoints
    from millrace.cli.stack.wiring import WiringOptions

    ports = {"http_port": 1, "grpc_port": 2}
    options = WiringOptions("m", "m", 1, host, ports, {}, {})

    assert public_endpoints(options) == {"http": http, "grpc": grpc}
