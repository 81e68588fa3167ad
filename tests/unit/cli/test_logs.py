"""Log files: bounded while they are written, followed while they rotate."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.cli.__main__ import run_verb
from millrace.cli.logs import Tail
from millrace.cli.stack.log_file import LogFile, last_lines


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


def test_logs_shows_one_service_or_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.log").write_text("one\ntwo\nthree\n")
    (tmp_path / "logs" / "cache.log").write_text("four\n")

    assert run_verb(["logs", "worker", "-n", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    assert run_verb(["logs"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "cache     | four"
    assert run_verb(["logs", "moon"]) == 1
    assert "there are: cache, worker" in capsys.readouterr().err


@pytest.mark.parametrize("lines", ["-1", "0", "x"])
def test_logs_refuses_a_number_of_lines_that_cannot_be(
    lines: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_verb(["logs", "-n", lines])

    assert caught.value.code == 2
    assert f"'{lines}' is not a whole number of at least 1" in capsys.readouterr().err
