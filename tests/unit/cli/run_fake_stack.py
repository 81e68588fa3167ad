"""Supervises fakes until it is signalled: run_fake_stack.py HOME JOURNAL NAME:MODE ..."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from millrace.cli.stack.run_file import new_stack_record, stack_lock
from millrace.cli.stack.supervisor import Supervisor
from millrace.cli.stack.topology import ProcessSpec
from millrace.cli.stack.wiring import Instance, Wiring
from millrace.config.home import Home

FAKE = Path(__file__).with_name("fake_service.py")


def main() -> None:
    """Prints `up` when all are ready."""
    home, journal = Home(Path(sys.argv[1])), sys.argv[2]
    instances = []
    for word in sys.argv[3:]:
        name, mode = word.split(":")
        spec = ProcessSpec(name, {"port": 1}, module="fake")
        command = (sys.executable, "-S", str(FAKE), name, mode, journal)
        instances.append(Instance(name, spec, "127.0.0.1", {"port": 1}, command, {}))
    with stack_lock(home):
        asyncio.run(supervise(home, Wiring(tuple(instances), ())))


async def supervise(home: Home, wiring: Wiring) -> None:
    """Runs them."""
    supervisor = Supervisor(
        wiring,
        home,
        new_stack_record("fake", {"http": "http://127.0.0.1:1"}),
        environ=dict(os.environ),
        show=lambda name, line: None,
        note=lambda message: None,
        run_init=no_init,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, supervisor.request_stop)
    await supervisor.run(say_up)


async def no_init(command: tuple[str, ...]) -> None:
    """Fakes need no preparation."""


async def say_up() -> None:
    """Tells the test."""
    print("up", flush=True)


if __name__ == "__main__":
    main()
