"""A password of its own in every setting that may hold one, and then a look into every output.

The settings are found by their declarations: a new one is planted without a change here.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import traceback
from base64 import b64decode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from millrace.cli.__main__ import run_verb
from millrace.cli.service_settings import find_settings, settings_names
from millrace.cli.stack.topology import load_topology
from millrace.config.loader import SettingValue, declared_settings, explain_config
from millrace.config.values import is_secret, split_optional
from millrace.core.errors import ConfigError
from millrace.core.url import Url
from millrace.testing.servers import LocalServer, free_port, start_nats, start_valkey
from tests.e2e.tiny_model import write_tiny_model

pytestmark = pytest.mark.e2e

TIMEOUT_S = 120
COMMANDS = (
    *(("status",), ("status", "--json"), ("doctor", "--json"), ("logs", "-n", "2000")),
    *(("config", "show"), ("config", "show", "--json")),
    *(("config", "show", "--running"), ("config", "show", "--running", "--json")),
    *(("trace", "--last"), ("trace", "--last", "--json"), ("generate", "Once")),
)
TOPOLOGY = load_topology()
# Read as one wrong thing or another by those that read URLs less strictly.
MALFORMED = (
    "{scheme}://bob:{canary}#x@127.0.0.1:1",
    "{scheme}://bob:{canary}/x@127.0.0.1:1",
    "{scheme}://bob:{canary}?x@127.0.0.1:1",
    "{scheme}://bob:x@127.0.0.1:{canary}",
    "{scheme}://bob:{canary}@127.0.0.1:99999",
    "{scheme}://bob:{canary}@",
    "{scheme}://bob:{canary} x@127.0.0.1",
    "{scheme}://bob:{canary}%zz@127.0.0.1",
    "wrong://bob:{canary}@127.0.0.1",
    "bob:{canary}@127.0.0.1",
)


def secret_settings() -> list[tuple[str, SettingValue]]:
    """Table and setting of everything that may hold a password."""
    return [
        (name, item)
        for name in settings_names(TOPOLOGY)
        for item in declared_settings(find_settings(TOPOLOGY, name), name)
        if is_secret(item.hint)
    ]


def scheme_of(item: SettingValue) -> str:
    base, _ = split_optional(item.hint)
    return str(base.SCHEMES[0]) if issubclass(base, Url) else ""


@dataclass
class Garden:
    """The passwords that were planted, and the outputs that were seen."""

    canaries: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def plant(self, place: str) -> str:
        """A password that is nowhere else; begins alike and ends in what must be encoded."""
        self.canaries[place] = f"canary{secrets.token_hex(6)}"
        return self.canaries[place] + "#/?@:%é"

    def plant_url(self, place: str, scheme: str, port: int, user: str = "bob") -> str:
        return f"{scheme}://{user}:{quote(self.plant(place), safe='')}@127.0.0.1:{port}"

    def see(self, where: str, text: str | bytes) -> str:
        """Keeps an output for the search."""
        shown = text.decode(errors="replace") if isinstance(text, bytes) else text
        self.outputs[where] = self.outputs.get(where, "") + shown
        return shown

    def search(self) -> None:
        """Fails with every password that shows, and where."""
        found = [
            f"{place} in {where}: …{text[max(0, text.index(canary) - 80) :][:160]}…"
            for place, canary in self.canaries.items()
            for where, text in self.outputs.items()
            if canary in text
        ]
        assert not found, "\n".join(found)


@pytest.mark.parametrize("table", settings_names(TOPOLOGY))
def test_a_value_that_cannot_be_read_is_quoted_by_nobody(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    garden = Garden()
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    cls = find_settings(TOPOLOGY, table)
    for name, item in secret_settings():
        for template in MALFORMED if name == table else ():
            place = f"{item.name} {template}"
            garden.plant(place)
            canary = garden.canaries[place]
            value = template.format(scheme=scheme_of(item), canary=canary)
            path = tmp_path / "config.toml"
            path.write_text(f"[{table}]\n{item.name} = {json.dumps(value)}\n")
            for argv, environ in (
                ([item.flag, value], {}),
                ([], {item.env: value}),
                ([], {"MILLRACE_CONFIG": str(path)}),
            ):
                environ = {"MILLRACE_HOME": "/nowhere", **environ}
                try:
                    garden.see(place, f"{explain_config(cls, table, argv, environ=environ)}")
                except ConfigError as error:
                    garden.see(place, "".join(traceback.format_exception(error)))
                else:
                    assert not issubclass(split_optional(item.hint)[0], Url), template
            assert run_verb(["config", "show", table]) == 1
            garden.see(place, "".join(capsys.readouterr()))
            path.unlink()
    garden.search()


class Backend:
    """An OTLP endpoint that takes everything."""

    def __init__(self) -> None:
        self.authorizations: list[str] = []
        self.keys: list[str] = []
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                backend.authorizations.append(self.headers.get("authorization", ""))
                backend.keys.append(self.headers.get("api-key", ""))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)

    @contextmanager
    def run(self) -> Iterator[Backend]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@dataclass
class World:
    """A home, the servers beside a stack, and the variables that tell it all."""

    garden: Garden
    home: Path
    environ: dict[str, str]
    nats: LocalServer
    valkey: LocalServer
    backend: Backend
    http_port: int
    grpc_port: int

    def millrace(self, *arguments: str, fails: bool = False, **variables: str) -> str:
        """Runs the command and keeps what it says."""
        ended = subprocess.run(
            [sys.executable, "-m", "millrace.cli", *arguments],
            env={**self.environ, **variables},
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        shown = self.garden.see(f"millrace {' '.join(arguments)}", ended.stdout + ended.stderr)
        assert (ended.returncode != 0) is fails, shown
        return shown

    def ask(self, path: str, body: Mapping[str, object] | None = None) -> httpx.Response:
        """A request to the gateway, whose reply is kept with its headers."""
        with httpx.Client(trust_env=False, timeout=30) as client:
            url = f"http://127.0.0.1:{self.http_port}{path}"
            reply = client.get(url) if body is None else client.post(url, json=body)
        self.garden.see(f"{path} {reply.status_code}", f"{reply.headers}{reply.text}")
        return reply

    def see_arguments(self) -> None:
        """What everybody may read of the processes, and of their children."""
        record = json.loads((self.home / "run" / "stack.json").read_text("utf-8"))
        pids = [record["pid"], *(item["pid"] for item in record["processes"] if item["pid"])]
        assert len(pids) > 5
        for pid in pids:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                children = (thread / "children").read_text("utf-8").split()
                for number in (pid, *children):
                    arguments = Path(f"/proc/{number}/cmdline")
                    if arguments.exists():
                        self.garden.see(f"arguments of {number}", arguments.read_bytes())

    def see_files(self) -> None:
        """Every file at home, whatever it is for."""
        for path in self.home.rglob("*"):
            if path.is_file():
                self.garden.see(f"file {path.relative_to(self.home)}", path.read_bytes())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def world(tmp_path: Path, model: Path) -> Iterator[World]:
    """Servers that want passwords, and a password in every variable that can hold one."""
    garden, home = Garden(), tmp_path / "home"
    nats_password, valkey_password = garden.plant("up.nats_url"), garden.plant("up.redis_url")
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with ExitStack() as stack:
        nats = stack.enter_context(start_nats(tmp_path, "--user", "bob", "--pass", nats_password))
        valkey = stack.enter_context(start_valkey(tmp_path, "--requirepass", valkey_password))
        backend = stack.enter_context(Backend().run())
        environ = {
            item.env: garden.plant_url(f"{name}.{item.name}", scheme_of(item), 1)
            for name, item in secret_settings()
            if (name, item.name) not in (("up", "nats_url"), ("up", "redis_url"))
        }
        environ |= {
            **kept,
            "MILLRACE_HOME": str(home),
            "MILLRACE_UP_MODEL": str(model),
            "MILLRACE_UP_FIRST_ANSWER": "false",
            "MILLRACE_UP_NATS_URL": _url("nats", nats_password, nats.port),
            "MILLRACE_UP_REDIS_URL": _url("redis", valkey_password, valkey.port),
            "MILLRACE_WORKER_BACKEND": "torch",
            "MILLRACE_WORKER_NUM_THREADS": "1",
            "MILLRACE_LOG_LEVEL": "debug",
            "CXX": "no-compiler",
            "OTEL_EXPORTER_OTLP_ENDPOINT": garden.plant_url("endpoint", "http", backend.port),
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"api-key={quote(garden.plant('header')[:18])}",
            "HF_ENDPOINT": garden.plant_url("HF_ENDPOINT", "http", 1),
            "HF_TOKEN": garden.plant("HF_TOKEN")[:18],
            "http_proxy": garden.plant_url("http_proxy", "http", 1),
            "https_proxy": garden.plant_url("https_proxy", "http", 1),
            "no_proxy": "",
        }
        yield World(garden, home, environ, nats, valkey, backend, free_port(), free_port())


def _url(scheme: str, password: str, port: int) -> str:
    user = "bob" if scheme == "nats" else "default"
    return f"{scheme}://{user}:{quote(password, safe='')}@127.0.0.1:{port}"


@contextmanager
def _running(world: World) -> Iterator[None]:
    ports = ["--http-port", str(world.http_port), "--grpc-port", str(world.grpc_port)]
    # One by flag: it must not be handed on to the one in the background.
    url = world.environ.pop("MILLRACE_UP_REDIS_URL")
    world.millrace("up", "--detach", *ports, "--redis-url", url)
    world.garden.outputs = {
        where.replace(url, "(the URL)"): text for where, text in world.garden.outputs.items()
    }
    try:
        yield
    finally:
        world.millrace("down")


def _completion(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "prompt": "Once", "max_tokens": 4, "temperature": 0, **fields}


def test_no_password_shows_while_a_stack_runs_and_its_servers_fail(world: World) -> None:
    with _running(world):
        ready = world.ask("/ready").json()
        assert (ready["status"], ready["degraded"]) == ("ready", []), "every password was right"
        for path in ("/health", "/metrics", "/cache/stats", "/v1/models", "/model/info"):
            world.ask(path)
        kept = world.ask("/v1/completions", _completion(idempotency_key="a", cache="use"))
        assert kept.status_code == 200
        world.see_arguments()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda arguments: world.millrace(*arguments), COMMANDS))
        world.millrace("models", "pull", "org/name", fails=True)

        # Then the servers go, one after the other, and Valkey comes back with another password.
        world.valkey.kill()
        assert "Redis" in _until_degraded(world)
        refused = world.ask("/v1/completions", _completion(idempotency_key="b"))
        assert refused.status_code == 503
        index = world.valkey.command.index("--requirepass") + 1
        world.valkey.command[index] = "another"
        world.valkey.start()
        assert "refused the password (WRONGPASS)" in _until_degraded(world, "WRONGPASS")
        assert "WRONGPASS" in world.millrace("status")
        world.millrace("doctor")
        world.nats.kill()
        world.ask("/v1/completions", _completion())
        world.see_files()
        modes = {
            path.name: path.stat().st_mode & 0o777
            for path in (world.home / "run").iterdir()
            if path.is_file()
        }
        assert modes.pop("prometheus-targets.json") == 0o644, "Prometheus is somebody else"
        assert set(modes.values()) == {0o600}, modes

    world.see_files()
    header = world.backend.authorizations[0].removeprefix("Basic ")
    assert world.garden.canaries["endpoint"] in b64decode(header).decode(), "it was used"
    assert world.backend.keys[0].startswith(world.garden.canaries["header"])
    world.garden.search()


def _until_degraded(world: World, word: str = "Redis") -> str:
    """The reason in /ready, once it holds `word`."""
    event = threading.Event()
    for _ in range(200):
        reason = str(world.ask("/ready").json()["reasons"].get("cache", ""))
        if word in reason:
            return reason
        event.wait(0.05)
    pytest.fail(f"/ready never said {word}: {reason}")


def test_no_password_shows_where_a_start_fails(world: World) -> None:
    garden = world.garden
    wrong = garden.plant_url("wrong", "nats", world.nats.port)
    closed = garden.plant_url("closed", "nats", free_port())
    started: dict[str, subprocess.Popen[bytes]] = {}
    commands: list[tuple[str, list[str], dict[str, str]]] = [
        ("up, wrong", ["millrace.cli", "up"], {"MILLRACE_UP_NATS_URL": wrong}),
        ("up, closed", ["millrace.cli", "up"], {"MILLRACE_UP_NATS_URL": closed}),
        ("bus, wrong", ["millrace.cli", "bus", "init"], {"MILLRACE_BUS_NATS_URL": wrong}),
        ("bus, closed", ["millrace.cli", "bus", "init"], {"MILLRACE_BUS_NATS_URL": closed}),
        ("cache", ["millrace.cache"], {}),
    ]
    for number, (name, arguments, variables) in enumerate(commands):
        variables = {
            "MILLRACE_HOME": str(world.home / str(number)),
            "MILLRACE_UP_HTTP_PORT": str(free_port()),
            "MILLRACE_UP_GRPC_PORT": str(free_port()),
            "MILLRACE_DEBUG": "1",
            **variables,
        }
        started[name] = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**world.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    for name, process in started.items():
        if name == "cache":
            # It serves without Redis; its log tells all the same.
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        garden.see(name, output)
    world.see_files()

    for name in ("up, wrong", "bus, wrong"):
        assert "refused the user or the password" in garden.outputs[name], garden.outputs[name]
    for name in ("up, closed", "bus, closed"):
        assert "no NATS server answers at nats://bob:***@" in garden.outputs[name]
    garden.search()


def test_the_search_finds_what_it_seeks() -> None:
    garden = Garden()
    password = garden.plant("here")
    garden.see("a log", f"cannot reach redis://:{password}@h")

    with pytest.raises(AssertionError, match="here in a log"):
        garden.search()
    assert {(name, item.name) for name, item in secret_settings()} >= {
        *(("up", "nats_url"), ("up", "redis_url"), ("cache", "redis_url"), ("bus", "nats_url")),
        *(("worker", "nats_url"), ("gateway", "nats_url"), ("collector", "forward_url")),
    }
