"""Log files: bounded while they are written, followed while they rotate."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from millrace.cli.__main__ import run_verb
from millrace.cli.logs import Tail
from millrace.cli.stack.log_file import START_MARK, LogFile, last_lines
from millrace.telemetry.log_line import FORMATS, make_line


def test_a_log_never_takes_more_than_twice_its_bound(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "worker.log", max_bytes=1000)

    for number in range(500):
        log.write_line(f"line {number}")
    log.close()

    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"worker.log", "worker.log.1"}
    assert max(sizes.values()) <= 1000
    assert last_lines(tmp_path / "worker.log", 1) == ["line 499"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_lines_lost_to_a_full_disk_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    log = LogFile(path)
    log.write_line("before")
    kept = log._file
    with open("/dev/full", "wb", buffering=0) as full:
        log._file = full
        log.write_line("lost")
        log.write_line("lost, too")
    log._file = kept

    log.write_line("after")
    log.close()

    assert last_lines(path, 9) == ["before", "---- 2 lines were lost here", "after"]


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    for word in ("first", "second"):
        log = LogFile(tmp_path / "worker.log")
        log.write_line(word)
        log.close()

    assert last_lines(tmp_path / "worker.log", 10) == ["first", "second"]


def test_a_tail_sees_every_line_across_a_rotation(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "worker.log", max_bytes=20)
    log.write_line("before")
    tail = Tail(log.path)

    log.write_line("a" * 10)
    log.write_line("b" * 10)

    assert tail.new_lines() == ["a" * 10, "b" * 10]
    assert tail.new_lines() == []
    tail.close()
    log.close()


def test_a_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    path.write_text("")
    tail = Tail(path)

    with path.open("a") as file:
        file.write("half")
        file.flush()
        assert tail.new_lines() == []
        file.write(" and half\n")

    assert tail.new_lines() == ["half and half"]
    tail.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    made = tmp_path / "logs"
    made.mkdir()
    return made


def _line(service: str, at_s: float, message: str, style: str = "text") -> str:
    return make_line(style, at_s, "INFO", service, message, {}) + "\n"


def test_logs_shows_one_service_or_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "worker.log").write_text("one\ntwo\nthree\n")
    (folder / "cache.log").write_text("four\n")

    assert run_verb(["logs", "worker", "-n", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    assert run_verb(["logs"]) == 0
    assert "cache     | four" in capsys.readouterr().out.splitlines()
    assert run_verb(["logs", "moon"]) == 1
    assert "there are: cache, worker" in capsys.readouterr().err


@pytest.mark.parametrize("style", FORMATS)
def test_logs_shows_the_current_run_in_order_of_time(
    folder: Path, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    def write(name: str, *lines: tuple[float, str]) -> None:
        text = "".join(_line(name, at_s, message, style) for at_s, message in lines)
        (folder / f"{name}.log").write_text(text)

    write("millrace", (10, START_MARK), (50, START_MARK), (53, "worker ended with SIGKILL"))
    write("worker", (11, "old"), (50.1, START_MARK), (52, "second"), (54, "fourth"))
    write("worker-2", (11, "of another run"))
    write("cache", (51, "first"))
    write("up", (53, "worker ended with SIGKILL"))

    assert run_verb(["logs"]) == 0

    shown = capsys.readouterr().out
    words = ("first", "second", "SIGKILL", "fourth")
    found = [word for line in shown.splitlines() for word in words if word in line]
    assert found == list(words)
    assert "old" not in shown and "another run" not in shown


def test_lines_without_a_time_go_with_the_one_before(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traceback = "Traceback (most recent call last):\n  File x\n"
    (folder / "a.log").write_text(_line("a", 10, "one") + traceback + _line("a", 30, "three"))
    (folder / "b.log").write_text(_line("b", 20, "two"))

    run_verb(["logs"])

    lines = [line.split(" | ")[1] for line in capsys.readouterr().out.splitlines()]
    words = [line.rsplit(maxsplit=1)[-1] for line in lines]
    assert words == ["one", "last):", "x", "two", "three"]


@pytest.mark.parametrize(
    ("since", "shown"),
    [
        ("1h", ["before this run", "now"]),
        ("90s", ["now"]),
        ("0.5d", ["before this run", "now"]),
        ("2001-01-01", ["long ago", "before this run", "now"]),
        ("2001-01-01T00:00:00+00:00", ["long ago", "before this run", "now"]),
    ],
)
def test_since_reaches_back_behind_the_current_run(
    folder: Path, capsys: pytest.CaptureFixture[str], since: str, shown: list[str]
) -> None:
    now_s = time.time()
    (folder / "millrace.log").write_text(_line("millrace", now_s - 60, START_MARK))
    old = _line("worker", 1e9, "long ago") + _line("worker", now_s - 1800, "before this run")
    (folder / "worker.log").write_text(old + _line("worker", now_s, "now"))

    assert run_verb(["logs", "worker", "--since", since]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" worker ")[2] for line in lines] == shown


@pytest.mark.parametrize("since", ["soon", "10x", "", "2026-13-01"])
def test_since_says_what_it_takes(since: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_verb(["logs", "--since", since])

    assert "is neither 90s, 10m" in capsys.readouterr().err


def test_logs_reads_on_where_the_log_was_replaced(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "worker.log", max_bytes=20)
    for word in ("a" * 10, "b" * 10, "c" * 5):
        log.write_line(word)
    log.close()

    assert last_lines(log.path, 2) == ["b" * 10, "c" * 5]
    assert last_lines(log.path, 3) == ["a" * 10, "b" * 10, "c" * 5][-3:]


@pytest.mark.parametrize("lines", ["-1", "0", "x"])
def test_logs_refuses_a_number_of_lines_that_cannot_be(
    lines: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_verb(["logs", "-n", lines])

    assert caught.value.code == 2
    assert f"'{lines}' is not a whole number of at least 1" in capsys.readouterr().err
