"""The container engine of this machine, if there is one, and what a test has to tell it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What an image needs to be built behind a mirror: options of `build`, and files or folders to mount
# into it and into the container that fetches the model, such as pip's configuration.
BUILD_OPTIONS = "CONTAINER_TEST_BUILD_OPTIONS"
MOUNTS = "CONTAINER_TEST_MOUNTS"
# An image that was built already.
IMAGE = "CONTAINER_TEST_IMAGE"
BUILD_TIMEOUT_S = 1800.0
COMMAND_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class ContainerEngine:
    """Docker with its compose plugin, or podman with podman-compose."""

    program: str
    compose: tuple[str, ...]
    mounts: tuple[str, ...] = field(default=())

    def run(self, *args: str, timeout_s: float = COMMAND_TIMEOUT_S, is_checked: bool = True) -> str:
        """Output of one command of the engine. Raises `AssertionError` with it if it fails."""
        return run([self.program, *args], timeout_s=timeout_s, is_checked=is_checked)

    def logs(self, container: str, *flags: str) -> str:
        """All that a container has said, on either stream."""
        command = [self.program, "logs", *flags, container]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        return done.stdout

    def image(self) -> str:
        """The image to run, built from this tree unless one is named."""
        if named := os.environ.get(IMAGE):
            return named
        command = ["build", "-f", "deploy/docker/Dockerfile", "--target", "cpu"]
        command += ["-t", "millrace-test:cpu", *shlex.split(os.environ.get(BUILD_OPTIONS, ""))]
        for mount in self.mounts:
            command += ["--volume", mount]
        self.run(*command, str(ROOT), timeout_s=BUILD_TIMEOUT_S)
        return "millrace-test:cpu"

    def is_healthy(self, container: str) -> bool:
        """What the container's own health check says now."""
        if self.program == "podman":
            # It has systemd run the checks, which need not be there.
            checked = subprocess.run(
                ["podman", "healthcheck", "run", container],
                capture_output=True,
                timeout=COMMAND_TIMEOUT_S,
            )
            return checked.returncode == 0
        state = json.loads(self.run("inspect", "--format", "{{json .State}}", container))
        return bool(state["Health"]["Status"] == "healthy")


def find_engine() -> ContainerEngine | str:
    """The engine, or why none can be used."""
    mounts = tuple(shlex.split(os.environ.get(MOUNTS, "")))
    if _works("docker", "compose", "version") and _works("docker", "info"):
        return ContainerEngine("docker", ("docker", "compose"), mounts)
    if not _works("podman", "info"):
        return "neither Docker with its compose plugin nor podman works here"
    if shutil.which("podman-compose") is None:
        return "podman is here, podman-compose is not"
    return ContainerEngine("podman", ("podman-compose",), mounts)


def run(
    command: list[str],
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path = ROOT,
    timeout_s: float = COMMAND_TIMEOUT_S,
    is_checked: bool = True,
) -> str:
    """Output of a command. Raises `AssertionError` with all it said if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=environ, cwd=folder, timeout=timeout_s
    )
    said = f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert done.returncode == 0 or not is_checked, said
    return done.stdout


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        done = subprocess.run(command, capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
