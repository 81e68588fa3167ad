"""A whole stack in containers, handled as its user would: compose, the engine, the two ports."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .engine import ContainerEngine, run

SERVERS = ("nats", "valkey", "otel-collector")
SERVICES = ("cache", "tokenizer", "worker", "scheduler", "gateway")
READY_TIMEOUT_S = 600.0
POLL_S = 0.5
# Ends the service itself: to kill the container is to ask the engine not to start it again.
KILL = """
import os, pathlib, signal
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    words = path.read_bytes().split(b"\\0")
    if b"millrace.worker" in words and words[0].endswith(b"python"):
        os.kill(int(path.parent.name), signal.SIGKILL)
"""


class ContainerStack:
    """Containers, networks and volumes of one project."""

    def __init__(
        self, engine: ContainerEngine, file: Path, project: str, settings: dict[str, str]
    ) -> None:
        self.engine = engine
        self.http_port, grpc_port = _free_ports(2)
        self._project = project
        self._command = [*engine.compose, "-p", project, "-f", str(file)]
        self._folder = file.parent
        self._environ = {
            **{key: value for key, value in os.environ.items() if "MILLRACE" not in key},
            "MILLRACE_GATEWAY_HTTP_PORT": str(self.http_port),
            "MILLRACE_GATEWAY_GRPC_PORT": str(grpc_port),
            **settings,
        }

    def compose(self, *args: str, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Output of one compose command."""
        return run(
            [*self._command, *args],
            environ=self._environ,
            folder=self._folder,
            timeout_s=timeout_s,
        )

    def up(self) -> None:
        """Starts everything and waits until the gateway can serve."""
        self.compose("up", "-d", *SERVERS)
        self.wait_healthy("nats")
        self.compose("run", "--rm", "bus-init")
        self.compose("run", "--rm", "model-init")
        self.compose("up", "-d", *SERVICES)
        self.wait_ready()

    def down(self, *flags: str) -> None:
        """Ends and removes the containers; the volumes with `-v` only."""
        # Added workers are orphans to podman-compose.
        self.compose("down", "--remove-orphans", *flags)

    def containers(self, service: str) -> list[str]:
        """Those that run now."""
        label = "label=com.docker.compose"
        filters = [f"{label}.project={self._project}", f"{label}.service={service}"]
        flags = [word for item in filters for word in ("--filter", item)]
        return self.engine.run("ps", "-q", *flags).split()

    def execute(self, service: str, *command: str, is_checked: bool = True) -> str:
        """Output of a command in the first container of a service."""
        container = self.containers(service)[0]
        return self.engine.run("exec", container, *command, is_checked=is_checked)

    def kill_worker(self, container: str) -> None:
        """The worker's process ends as in a crash."""
        self.engine.run("exec", container, "python", "-c", KILL, is_checked=False)

    def wait_ready(self) -> None:
        """Until the gateway says so at its published port."""
        self.wait(lambda: self._status("/ready") == 200, "the gateway is not ready")

    def wait_healthy(self, service: str) -> None:
        """Until the health checks of all containers of a service pass."""

        def is_healthy() -> bool:
            containers = self.containers(service)
            return bool(containers) and all(map(self.engine.is_healthy, containers))

        self.wait(is_healthy, f"{service} is not healthy")

    def wait(self, holds: Callable[[], bool], complaint: str) -> None:
        """Asks until it holds. Raises `AssertionError` with the logs if it never does."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"{complaint}:\n{self.logs()}")
            time.sleep(POLL_S)

    def logs(self) -> str:
        """The last words of every container."""
        texts = []
        for service in (*SERVERS, *SERVICES):
            for container in self.containers(service):
                texts.append(f"--- {service}\n{self.engine.logs(container, '--tail', '20')}")
        return "\n".join(texts)

    def get(self, path: str) -> Any:
        """The JSON at a path of the gateway."""
        with urllib.request.urlopen(self._url(path), timeout=60) as reply:
            return json.load(reply)

    def ask(self, **body: Any) -> Any:
        """One chat completion, whole."""
        with urllib.request.urlopen(self._chat(body), timeout=300) as reply:
            return json.load(reply)

    def stream(self, **body: Any) -> Iterator[dict[str, Any]]:
        """The events of one chat completion as they come."""
        with urllib.request.urlopen(self._chat(body | {"stream": True}), timeout=300) as reply:
            for line in reply:
                text = line.decode().strip().removeprefix("data: ")
                if text.startswith("{"):
                    yield json.loads(text)

    def _status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self._url(path), timeout=10) as reply:
                return int(reply.status)
        except OSError:
            return 0

    def _chat(self, body: dict[str, Any]) -> urllib.request.Request:
        headers = {"content-type": "application/json"}
        data = json.dumps(body).encode()
        return urllib.request.Request(self._url("/v1/chat/completions"), data, headers)

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"


def _free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
