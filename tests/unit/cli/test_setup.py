"""The Makefile and the look at the machine before set-up."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
TARGETS = [
    "help",
    "setup",
    "run",
    "test",
    "test-all",
    "lint",
    "type",
    "proto",
    "bench",
    "bench-claims",
    "trace-ui",
    "clean",
]


@pytest.fixture
def preflight() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "scripts" / "preflight.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(*arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # `make test ARGS=...` hands its variables on to every make below it.
    handed_on = ("MAKE", "MFLAGS", "ARGS")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(handed_on)}
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout


def test_help_is_the_default_and_names_every_target() -> None:
    shown = make()

    assert [line.split()[0] for line in shown.splitlines()] == TARGETS


def test_nothing_is_installed_again_until_pyproject_changes(tmp_path: Path) -> None:
    first = make("-n", "run", f"VENV={tmp_path}")
    stamp = next(
        word for word in first.split() if ".setup-" in word and not word.endswith("-*")
    ).rstrip(";")

    assert "pip install" in first
    Path(stamp).touch()
    assert make("-n", "run", f"VENV={tmp_path}").strip() == f"exec {tmp_path}/bin/millrace up"


def test_another_python_can_be_chosen(tmp_path: Path) -> None:
    shown = make("-n", "setup", "PYTHON=python3.99", f"VENV={tmp_path}")

    assert "python3.99 -m venv" in shown
    assert "python3.99 scripts/preflight.py" in shown


def test_preflight_says_what_is_downloaded_and_imports_nothing_of_ours(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "scripts/preflight.py"), "--venv", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert shown.returncode == 0, shown.stderr
    assert "To be downloaded, once:" in shown.stdout
    assert "MB" in shown.stdout


def test_preflight_refuses_an_old_python(
    preflight: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "MIN_PYTHON", (99, 0))

    (failure,) = preflight.check_python()

    assert "99.0 or newer" in failure
    assert "PYTHON=" in failure


def test_preflight_warns_of_a_busy_port(
    preflight: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(preflight, "PORTS", ((port, "--http-port"),))

        (warning,) = preflight.check_ports()

    assert str(port) in warning
    assert "--http-port" in warning


def test_preflight_warns_of_too_little_disk(
    preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight, "CPU_DISK_BYTES", 1 << 60)
    monkeypatch.setattr(preflight, "CUDA_DISK_BYTES", 1 << 60)

    (warning,) = preflight.check_disk(str(tmp_path / "not" / "there"), True)

    assert "GiB are needed" in warning
