"""Starting and ending the cache process."""

from __future__ import annotations

import signal
import subprocess
import sys

COMMAND = [sys.executable, "-m", "millrace.cache"]


def test_process_serves_without_redis_and_ends_on_sigterm() -> None:
    command = [*COMMAND, "--redis-url", "redis://127.0.0.1:1/0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert " ready cache 127.0.0.1:" in line


def test_wrong_url_stops_the_start_with_its_reason() -> None:
    command = [*COMMAND, "--redis-url", "http://127.0.0.1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("millrace cache: --redis-url must begin with redis://")
