"""The supervisor over fake services: order, readiness, restarts, frozen ones, a clean end."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from millrace.cli.stack.log_file import last_lines
from millrace.cli.stack.ping import can_ask
from millrace.cli.stack.ports import pick_free_port
from millrace.cli.stack.process_info import is_alive, start_mark
from millrace.cli.stack.restarts import RestartPolicy, Restarts
from millrace.cli.stack.run_file import (
    StackRecord,
    new_stack_record,
    read_run_file,
    running_stack,
    stack_lock,
)
from millrace.cli.stack.supervisor import PartFailed, Supervisor
from millrace.cli.stack.topology import ProcessSpec
from millrace.cli.stack.wiring import Instance, Wiring
from millrace.config.home import Home
from millrace.core.errors import Conflict, Unavailable
from millrace.telemetry.log_line import log_line, time_of

HERE = Path(__file__).parent
FAST = RestartPolicy(first_delay_s=0.01, max_delay_s=0.02, max_exits=3)


@dataclass
class FakeStack:
    """A supervisor over fakes, and everything it said."""

    home: Home
    journal: Path
    instances: list[Instance] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shown: list[tuple[str, str]] = field(default_factory=list)
    inits: list[tuple[str, ...]] = field(default_factory=list)
    init_error: str = ""
    max_stall_s: float = 1.2
    record: StackRecord = field(default_factory=lambda: new_stack_record("fake", {}))
    pids: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        name: str,
        mode: str = "normal",
        *,
        needs: tuple[str, ...] = (),
        init: tuple[str, ...] = (),
        ready_timeout_s: float = 10.0,
        stop_grace_s: float = 5.0,
        ping: str = "",
    ) -> None:
        ports = {"port": pick_free_port("127.0.0.1", set())}
        spec = ProcessSpec(
            name,
            ports,
            module="fake",
            ping=ping,
            needs=needs,
            ready_timeout_s=ready_timeout_s,
            stop_grace_s=stop_grace_s,
        )
        command = (
            sys.executable,
            "-S",
            str(HERE / "fake_service.py"),
            name,
            mode,
            str(self.journal),
            str(ports["port"]),
        )
        self.instances.append(Instance(name, spec, "127.0.0.1", ports, command, {}, init))

    def supervisor(self) -> Supervisor:
        return Supervisor(
            Wiring(tuple(self.instances), ()),
            self.home,
            self.record,
            environ=dict(os.environ),
            show=lambda name, line: self.shown.append((name, line)),
            note=self.notes.append,
            run_init=self.run_init,
            policy=FAST,
            max_stall_s=self.max_stall_s,
        )

    async def run_init(self, command: tuple[str, ...]) -> None:
        self.inits.append(command)
        if self.init_error:
            raise Unavailable(self.init_error)

    async def run(self, act: Callable[[Supervisor], Awaitable[None]] | None = None) -> None:
        """Starts, lets `act` do something once all are ready, stops."""
        supervisor = self.supervisor()

        async def when_ready() -> None:
            self.pids = {item.name: item.pid for item in self.record.processes}
            if act is not None:
                await act(supervisor)
            supervisor.request_stop()

        await supervisor.run(when_ready)

    def events(self, kind: str) -> list[str]:
        lines = self.journal.read_text().splitlines()
        return [line.split()[1] for line in lines if line.startswith(kind)]


@pytest.fixture
def stack(tmp_path: Path) -> FakeStack:
    home = Home(tmp_path / "home")
    home.run.mkdir(parents=True)
    return FakeStack(home, tmp_path / "journal")


async def eventually(is_true: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)


def assert_nothing_left(stack: FakeStack) -> None:
    assert not [name for name, pid in stack.pids.items() if pid and start_mark(pid)]
    assert read_run_file(stack.home) is None


async def test_a_process_starts_when_what_it_needs_is_ready(stack: FakeStack) -> None:
    stack.add("bus", "slow")
    stack.add("worker", needs=("bus",))
    stack.add("gateway", needs=("bus", "worker"))

    await stack.run()

    lines = stack.journal.read_text().splitlines()
    assert lines.index("ready bus") < lines.index("start worker")
    assert lines.index("ready worker") < lines.index("start gateway")


async def test_processes_stop_in_reverse_order_and_nothing_is_left(stack: FakeStack) -> None:
    for name in ("bus", "worker", "gateway"):
        stack.add(name)

    await stack.run()

    assert stack.events("stop") == ["gateway", "worker", "bus"]
    assert len(stack.pids) == 3
    assert_nothing_left(stack)


async def test_the_run_file_shows_every_process(stack: FakeStack) -> None:
    stack.add("worker")
    seen: list[StackRecord | None] = []

    async def look(supervisor: Supervisor) -> None:
        seen.append(running_stack(stack.home))

    await stack.run(look)

    assert seen[0] is not None
    (item,) = seen[0].processes
    assert (item.name, item.state, item.pid) == ("worker", "ready", stack.pids["worker"])


async def test_a_server_is_prepared_before_those_that_need_it(stack: FakeStack) -> None:
    stack.add("bus", init=("bus", "init"))
    stack.add("worker", needs=("bus",))

    await stack.run()

    assert stack.inits == [("bus", "init")]


async def test_a_failed_preparation_names_the_command(stack: FakeStack) -> None:
    stack.add("bus", init=("bus", "init"))
    stack.init_error = "millrace bus init: no JetStream"

    with pytest.raises(PartFailed, match="no JetStream"):
        await stack.run()

    assert_nothing_left(stack)


async def test_a_part_that_does_not_start_ends_the_stack_with_its_last_lines(
    stack: FakeStack,
) -> None:
    stack.add("bus")
    stack.add("worker", "broken", needs=("bus",))

    with pytest.raises(PartFailed, match="worker ended with status 3") as caught:
        await stack.run()

    (line,) = caught.value.log_lines
    assert line.endswith(" INFO    worker cannot find the flux capacitor")
    assert stack.events("stop") == ["bus"]
    assert_nothing_left(stack)


async def test_a_part_that_is_never_ready_ends_the_stack(stack: FakeStack) -> None:
    stack.add("worker", "mute", ready_timeout_s=0.3)

    with pytest.raises(PartFailed, match=r"worker was not ready within 0.3 s"):
        await stack.run()

    assert_nothing_left(stack)


async def test_a_killed_process_comes_back(stack: FakeStack) -> None:
    stack.add("worker")

    async def kill(supervisor: Supervisor) -> None:
        item = stack.record.processes[0]
        os.kill(item.pid, signal.SIGKILL)
        await eventually(lambda: item.num_restarts == 1 and item.state == "ready", "back")

    await stack.run(kill)

    assert stack.events("ready") == ["worker", "worker"]
    assert any("ended with SIGKILL; starting it again" in note for note in stack.notes)
    assert_nothing_left(stack)


async def test_a_restarted_server_is_prepared_again(stack: FakeStack) -> None:
    stack.add("bus", init=("bus", "init"))

    async def kill(supervisor: Supervisor) -> None:
        os.kill(stack.record.processes[0].pid, signal.SIGKILL)
        await eventually(lambda: len(stack.inits) == 2, "prepared again")

    await stack.run(kill)


async def test_a_crash_loop_never_ends_the_stack(stack: FakeStack) -> None:
    stack.add("bus")
    stack.add("worker", "crashing", needs=("bus",))

    async def wait(supervisor: Supervisor) -> None:
        bus, worker = stack.record.processes
        await eventually(lambda: worker.num_restarts >= 5, "five restarts")
        await eventually(lambda: worker.state == "failing", "failing")
        shown = read_run_file(stack.home)
        assert shown is not None and shown.processes[1].state == "failing"
        assert bus.state == "ready" and bus.num_restarts == 0

    await stack.run(wait)

    assert any(re.fullmatch("worker: .* about to divide by zero", note) for note in stack.notes)
    assert any(note.startswith("worker is failing: 3 ends within 60 s") for note in stack.notes)
    assert_nothing_left(stack)


async def test_a_process_that_was_ready_before_it_ended_does_not_end_the_start(
    stack: FakeStack,
) -> None:
    stack.add("worker", "crashing_once")

    async def wait(supervisor: Supervisor) -> None:
        item = stack.record.processes[0]
        await eventually(lambda: item.num_restarts == 1 and item.state == "ready", "ready again")

    await stack.run(wait)


async def test_a_failing_process_that_stays_up_is_ready_again(stack: FakeStack) -> None:
    stack.add("worker", "crashing_thrice")

    async def wait(supervisor: Supervisor) -> None:
        item = stack.record.processes[0]
        await eventually(lambda: item.num_restarts == 3 and item.state == "ready", "ready again")

    await stack.run(wait)

    assert_nothing_left(stack)


async def test_a_preparation_that_fails_after_a_restart_is_tried_again(stack: FakeStack) -> None:
    stack.add("bus", init=("bus", "init"))

    async def fail_for_a_while(supervisor: Supervisor) -> None:
        item = stack.record.processes[0]
        stack.init_error = "millrace bus init: no JetStream"
        os.kill(item.pid, signal.SIGKILL)
        await eventually(lambda: item.num_restarts >= 4, "several restarts")
        stack.init_error = ""
        await eventually(lambda: item.state == "ready", "ready again")

    await stack.run(fail_for_a_while)

    assert "millrace bus init: no JetStream; starting it again in 0.02 s" in stack.notes


def test_a_process_whose_port_for_questions_is_off_is_not_asked(stack: FakeStack) -> None:
    stack.add("worker", ping="http")
    (instance,) = stack.instances
    spec = replace(instance.spec, ping_port="metrics_port")

    assert can_ask(instance)
    assert not can_ask(replace(instance, spec=replace(spec, ping="")))
    assert not can_ask(replace(instance, spec=spec, ports={**instance.ports, "metrics_port": 0}))
    assert not can_ask(replace(instance, spec=spec))


async def test_a_frozen_process_is_ended_and_comes_back(stack: FakeStack) -> None:
    stack.add("worker", "answering", ping="http")

    async def freeze(supervisor: Supervisor) -> None:
        item = stack.record.processes[0]
        os.kill(item.pid, signal.SIGSTOP)
        await eventually(lambda: item.state == "not answering", "seen as frozen")
        await eventually(lambda: item.num_restarts == 1 and item.state == "ready", "back")

    await stack.run(freeze)

    assert "worker has not answered for 1.2 s; ending it" in stack.notes
    assert_nothing_left(stack)


async def test_a_process_that_answers_again_is_left_alone(stack: FakeStack) -> None:
    stack.max_stall_s = 6.0
    stack.add("worker", "answering", ping="http")

    async def freeze(supervisor: Supervisor) -> None:
        item = stack.record.processes[0]
        os.kill(item.pid, signal.SIGSTOP)
        await eventually(lambda: item.state == "not answering", "seen as frozen", 30)
        os.kill(item.pid, signal.SIGCONT)
        await eventually(lambda: item.state == "ready", "answers again", 30)
        assert item.num_restarts == 0

    await stack.run(freeze)


async def test_a_full_disk_does_not_end_the_stack(
    stack: FakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.add("worker")

    def no_space(home: Home, record: StackRecord) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def fill(supervisor: Supervisor) -> None:
        item = stack.record.processes[0]
        monkeypatch.setattr("millrace.cli.stack.supervisor.write_run_file", no_space)
        os.kill(item.pid, signal.SIGKILL)
        await eventually(lambda: item.num_restarts == 1 and item.state == "ready", "back")

    await stack.run(fill)

    assert sum("cannot write the run file" in note for note in stack.notes) == 1
    assert_nothing_left(stack)


def test_back_off_doubles_up_to_its_bound() -> None:
    policy = RestartPolicy(first_delay_s=0.5, max_delay_s=3.0)

    assert [policy.delay_s(number) for number in (1, 2, 3, 4, 9)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_ends_long_ago_do_not_count() -> None:
    restarts = Restarts(RestartPolicy(window_s=60, max_exits=3, max_delay_s=10))

    assert [restarts.ended(second) for second in (0, 1, 2)] == [0.5, 1.0, 10.0]
    assert restarts.is_failing
    assert restarts.ended(61.5) == 1.0
    assert not restarts.is_failing


async def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(stack: FakeStack) -> None:
    stack.add("worker", "stubborn", stop_grace_s=0.2)

    await stack.run()

    assert stack.events("stop") == []
    assert_nothing_left(stack)


async def test_a_second_stop_request_does_not_wait_for_the_grace(stack: FakeStack) -> None:
    stack.add("worker", "stubborn", stop_grace_s=600)

    async def stop_twice(supervisor: Supervisor) -> None:
        supervisor.request_stop()
        supervisor.request_stop()

    await asyncio.wait_for(stack.run(stop_twice), 10)

    assert_nothing_left(stack)


async def test_children_of_a_process_end_with_it(stack: FakeStack) -> None:
    stack.add("worker", "family")
    members: list[int] = []

    async def look(supervisor: Supervisor) -> None:
        members.extend(_group_members(stack.pids["worker"]))

    await stack.run(look)

    assert len(members) == 2
    await eventually(lambda: not any(start_mark(pid) for pid in members), "all ended")


def _group_members(group: int) -> list[int]:
    shown = subprocess.run(["ps", "-eo", "pid=,pgid="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in shown.stdout.splitlines()]
    return [int(pid) for pid, pgid in pairs if int(pgid) == group]


async def test_a_stop_during_the_start_leaves_nothing(stack: FakeStack) -> None:
    stack.add("bus")
    stack.add("worker", "mute", needs=("bus",))
    supervisor = stack.supervisor()

    async def never() -> None:
        raise AssertionError("not ready")

    running = asyncio.create_task(supervisor.run(never))
    await eventually(lambda: stack.record.processes[1].pid != 0, "worker started")
    stack.pids = {item.name: item.pid for item in stack.record.processes}
    supervisor.request_stop()
    await running

    assert_nothing_left(stack)


async def test_output_goes_to_the_log_and_the_ready_line_is_not_shown(stack: FakeStack) -> None:
    stack.add("worker", "talking")

    async def wait(supervisor: Supervisor) -> None:
        await eventually(lambda: "second line" in str(stack.shown), "second line shown")

    await stack.run(wait)

    lines = last_lines(stack.home.logs / "worker.log", 100)
    assert [line.split(" worker ")[1] for line in lines[-2:]] == [
        *("second line", "no newline at the end")
    ]
    assert all(time_of(line) for line in lines), "every line has a time"
    assert any(" ready worker " in line for line in lines)
    assert not any(" ready " in line for _, line in stack.shown)
    assert max(len(line) for line in lines) < 100_000


@pytest.mark.parametrize(
    ("line", "is_ready"),
    [
        ("ready worker 127.0.0.1:1", True),
        (log_line("worker", "ready worker [::1]:1"), True),
        ('{"time":"t","message":"ready worker 127.0.0.1:1"}', True),
        ("ready worker", False),
        ("ready scheduler 127.0.0.1:1", False),
        ("ready worker 127.0.0.1:1 not yet", False),
        ("already worker 127.0.0.1:1", False),
    ],
)
def test_a_ready_line_is_known_in_every_format(stack: FakeStack, line: str, is_ready: bool) -> None:
    stack.add("worker")
    process = stack.supervisor()._processes[0]

    process._take_line(line)
    process.log.close()

    assert process._ready.is_set() is is_ready


def _start_fake_stack(home: Home, journal: Path, *parts: str) -> subprocess.Popen[str]:
    script = HERE / "run_fake_stack.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(home.root), str(journal), *parts],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
def test_a_killed_supervisor_leaves_no_child(stack: FakeStack) -> None:
    process = _start_fake_stack(stack.home, stack.journal, "bus:normal", "worker:stubborn")
    record = running_stack(stack.home)
    assert record is not None

    process.kill()
    process.communicate()

    marks = [(item.pid, item.mark) for item in record.processes]
    assert len(marks) == 2
    deadline = time.monotonic() + 5
    while any(is_alive(pid, mark) for pid, mark in marks):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert running_stack(stack.home) is None


def test_only_one_stack_runs_per_home(stack: FakeStack) -> None:
    process = _start_fake_stack(stack.home, stack.journal, "bus:normal")
    try:
        with (
            pytest.raises(Conflict, match=rf"pid {process.pid}\); stop it with `.*millrace down`"),
            stack_lock(stack.home),
        ):
            pass
    finally:
        process.terminate()
        process.communicate()

    assert process.returncode == 0
    with stack_lock(stack.home):
        assert list(stack.home.run.iterdir()) == []
