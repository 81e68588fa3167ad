"""How a service begins and ends."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from millrace.core.errors import ConfigError, Unavailable
from millrace.rpc.run import exit_on_error, run_until_first, tell_ready

# A start that cannot succeed, per service.
WRONG_STARTS = {
    "gateway": ["--nats-url", "nats://127.0.0.1:1", "--max-in-flight", "0"],
    "tokenizer": ["--models", "no-such-model"],
    "scheduler": ["--target-itl-ms", "soon"],
    "worker": ["--model", "no-such-model"],
    "cache": ["--redis-url", "http://127.0.0.1"],
}


def test_error_of_ours_ends_the_process_with_one_line() -> None:
    with pytest.raises(SystemExit) as caught, exit_on_error("cache"):
        raise ConfigError("the port\nis in use")
    assert caught.value.code == "millrace cache: the port is in use"


def test_errors_of_task_groups_are_found() -> None:
    inner = ExceptionGroup("inner", [Unavailable("another scheduler owns m")])
    with pytest.raises(SystemExit) as caught, exit_on_error("scheduler"):
        raise ExceptionGroup("outer", [inner])
    assert caught.value.code == "millrace scheduler: another scheduler owns m"


def test_a_defect_shows_its_traceback_without_passwords() -> None:
    script = (
        "from millrace.rpc.run import exit_on_error\n"
        "with exit_on_error('cache'):\n"
        "    url = 'redis://:hun' + 'ter2@h'\n"
        "    raise KeyError(f'no {url}')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert "Traceback" in ended.stderr and "redis://***@h" in ended.stderr
    assert "hunter2" not in ended.stderr


def test_defect_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), exit_on_error("cache"):
        raise KeyError("row")
    with pytest.raises(ExceptionGroup), exit_on_error("cache"):
        raise ExceptionGroup("both", [Unavailable("away"), KeyError("row")])


async def test_first_that_ends_ends_the_others() -> None:
    has_ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            has_ended.set()

    async def fail() -> None:
        raise Unavailable("away")

    with pytest.raises(Unavailable):
        await run_until_first(forever(), fail())
    assert has_ended.is_set()
    await run_until_first(forever(), asyncio.sleep(0))


@pytest.mark.parametrize("service", WRONG_STARTS)
def test_service_that_cannot_start_says_why_in_one_line(service: str, tmp_path: Path) -> None:
    if service == "worker":
        pytest.importorskip("torch")
    ended = subprocess.run(
        [sys.executable, "-m", f"millrace.{service}", *WRONG_STARTS[service]],
        env={**os.environ, "MILLRACE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"millrace {service}: ")
    assert not ended.stdout


def test_ready_service_is_told_of_and_leaves_what_it_has_to_the_garbage_collector_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Part:
        pass

    kept, gone = Part(), Part()
    kept.itself, gone.itself = kept, gone  # type: ignore[attr-defined]
    is_gone = weakref.ref(gone)
    del gone
    try:
        tell_ready("cache", "127.0.0.1:50062")
        assert capsys.readouterr().out.endswith(" INFO    cache ready cache 127.0.0.1:50062\n")
        assert is_gone() is None
        assert not any(kept is each for each in gc.get_objects())
    finally:
        gc.unfreeze()
