"""What the system says of a process's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts.bench.memory import memory_mb

SMAPS = """\
7f0000000000-7f0010000000 r--s 00000000 08:01 11  /srv/a folder/cache/weights/model-int8-avx2-0a.bin
Size:             262144 kB
Rss:              200000 kB
Shared_Clean:     190000 kB
Private_Clean:     10000 kB
Private_Dirty:         0 kB
7f0020000000-7f0020001000 rw-p 00000000 00:00 0
Rss:                1000 kB
Private_Clean:         0 kB
Private_Dirty:      1000 kB
"""


def test_private_part_of_mapped_weights_is_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "smaps").write_text(SMAPS)
    (folder / "smaps_rollup").write_text(
        "Rss: 201000 kB\nPrivate_Clean: 10000 kB\nPrivate_Dirty: 1000 kB\n"
    )
    (folder / "status").write_text("Name:\tworker\nVmHWM:\t 300000 kB\n")
    assert memory_mb(7, tmp_path) == {
        "peak_rss": 307.2,
        "rss": 205.8,
        "private": 11.3,
        "weights": 204.8,
        "weights_private": 10.2,
    }


def test_process_that_ended_has_no_figures(tmp_path: Path) -> None:
    assert memory_mb(7, tmp_path) == {}


def test_a_process_without_weights_has_figures() -> None:
    code = "print('ready', flush=True); input()"
    command = [sys.executable, "-c", code]
    waiting = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert waiting.stdout is not None
    try:
        assert waiting.stdout.readline() == b"ready\n"
        figures = memory_mb(waiting.pid)
    finally:
        waiting.communicate(b"\n")
    assert 1 < figures["private"] <= figures["rss"] <= figures["peak_rss"]
    assert figures["weights"] == 0
