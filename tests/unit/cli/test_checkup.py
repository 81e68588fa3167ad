"""`millrace doctor` goes on, and the kernels are loaded before they are called good."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from millrace.cli import checkup
from millrace.cli.checkup import Finding, check_kernels, examine
from millrace.config.home import Home
from millrace.core.errors import ConfigError
from millrace.engine.kernels.cpu import build, loadable
from millrace.engine.kernels.cpu.loadable import explain_failure, noexec_mount

MOUNTS = """\
/dev/root / ext4 rw,relatime 0 0
tmpfs /tmp tmpfs rw,nosuid,noexec 0 0
tmpfs /tmp/run\\040able tmpfs rw,nosuid 0 0
/dev/sdb /data ext4 rw,noexec 0 0
/dev/sdc /data ext4 rw 0 0
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks that take long or look at this machine's stack."""
    for name in ("check_kernels", "_stack"):
        monkeypatch.setattr(checkup, name, lambda *args: Finding("x", "ok", "x"))


def test_one_check_that_fails_stops_no_other(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> Finding:
        raise ConfigError("cannot keep the CPU kernels")

    def break_down(*args: object) -> Finding:
        raise ZeroDivisionError("at nats://bob:hunter2@h")

    monkeypatch.setattr(checkup, "check_kernels", refuse)
    monkeypatch.setattr(checkup, "_memory", break_down)

    found = {item.check: item for item in examine({"MILLRACE_HOME": str(tmp_path)})}

    assert (found["kernels"].level, found["kernels"].text) == (
        "fail",
        "cannot keep the CPU kernels",
    )
    assert found["memory"].level == "fail" and "hunter2" not in found["memory"].text
    assert {"python", "settings", "nats", "home", "disk", "model"} <= set(found)


def test_a_user_without_home_is_examined_all_the_same(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*args: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)

    found = {item.check: item for item in examine({})}

    assert found["home"].level == "fail" and "set MILLRACE_HOME" in found["home"].text
    assert found["python"].level == "ok"


@pytest.mark.parametrize(
    ("environ", "check", "text"),
    [
        ({"MILLRACE_WORKR_DTYPE": "x"}, "settings", "did you mean MILLRACE_WORKER_DTYPE"),
        ({"MILLRACE_UP_REDIS_URL": "redis://:hunter2#@h"}, "settings", "MILLRACE_UP_REDIS_URL can"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "tracing", "http/protobuf"),
        ({"http_proxy": "http://bob:hunter2@p:1"}, "proxy", "http_proxy=http://***@p:1 without"),
        ({"MILLRACE_HOME": "/dev/null/x"}, "home", "MILLRACE_HOME is /dev/null/x"),
    ],
)
def test_what_is_wrong_with_the_environment_is_found(
    quick: None, tmp_path: Path, environ: dict[str, str], check: str, text: str
) -> None:
    found = {item.check: item for item in examine({"MILLRACE_HOME": str(tmp_path), **environ})}

    assert found[check].level in ("warn", "fail")
    assert text in found[check].text
    assert not [item for item in found.values() if "hunter2" in f"{item}"]


def test_looking_at_a_home_makes_nothing_in_it(quick: None, tmp_path: Path) -> None:
    examine({"MILLRACE_HOME": str(tmp_path / "home")})

    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/tmp/x/kernels.so", "/tmp"),
        ("/tmp/run able/kernels.so", None),
        ("/home/x/kernels.so", None),
        ("/data/kernels.so", None),
        ("/tmpx/kernels.so", None),
    ],
)
def test_the_mount_that_forbids_programs_is_found(
    tmp_path: Path, path: str, mount: str | None
) -> None:
    table = tmp_path / "mounts"
    table.write_text(MOUNTS)

    assert noexec_mount(Path(path), table) == (Path(mount) if mount else None)
    assert noexec_mount(Path(path), tmp_path / "none") is None


def test_kernels_that_cannot_be_loaded_are_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "kernels.so"
    library.write_bytes(b"no library")
    monkeypatch.setattr(build, "build_library", lambda *args: library)
    home = Home(tmp_path)

    finding = check_kernels(home, {"MILLRACE_HOME": str(tmp_path)})
    assert finding.level == "warn" and "cannot load the CPU kernels" in finding.text

    monkeypatch.setattr(loadable, "noexec_mount", lambda path: Path("/mnt"))
    finding = check_kernels(home, {"MILLRACE_HOME": str(tmp_path)})
    assert "mounted noexec (/mnt); set MILLRACE_HOME" in finding.text
    assert "plain torch" in finding.text


def test_a_failure_without_a_mount_keeps_the_words_of_the_loader(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        ctypes.CDLL(str(tmp_path / "none.so"))

    assert "none.so" in explain_failure(tmp_path / "none.so", caught.value)
