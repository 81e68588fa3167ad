"""Finding nats-server and valkey-server."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.cli.stack.servers import find_server
from millrace.cli.stack.topology import ProcessSpec, load_topology
from millrace.core.errors import ConfigError

SPEC = ProcessSpec(
    "bus",
    {"port": 1},
    programs=("bus-server",),
    package="no-such-package",
    min_version="2.10",
)


def make_program(folder: Path, says: str) -> Path:
    path = folder / "bus-server"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_a_good_program_on_the_path_is_taken(tmp_path: Path) -> None:
    path = make_program(tmp_path, "bus-server: v2.11.3")

    found = find_server(SPEC, str(tmp_path))

    assert (found.path, found.version, found.origin) == (path, "2.11.3", "PATH")


def test_versions_are_compared_as_numbers(tmp_path: Path) -> None:
    make_program(tmp_path, "bus-server: v2.9.25")

    with pytest.raises(ConfigError, match=r"2\.10 or newer \(.*bus-server is 2\.9\.25\)"):
        find_server(SPEC, str(tmp_path))


def test_a_missing_server_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="install the package no-such-package"):
        find_server(SPEC, str(tmp_path))


@pytest.mark.parametrize("name", ["nats", "valkey"])
def test_the_wheels_bring_the_servers(name: str, tmp_path: Path) -> None:
    found = find_server(load_topology().get(name), str(tmp_path))

    assert found.origin.startswith("package ")
    assert found.path.is_file()
