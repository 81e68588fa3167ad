"""Behaves like a service, or badly: fake_service.py NAME MODE JOURNAL."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType


def main() -> None:
    """Writes what happens to the journal; MODE says how it misbehaves."""
    name, mode, journal = sys.argv[1:4]

    def note(event: str) -> None:
        with open(journal, "a", encoding="utf-8") as file:
            file.write(f"{event} {name}\n")

    def end(number: int, frame: FrameType | None) -> None:
        note("stop")
        sys.exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else end)
    note("start")
    if mode == "slow":
        time.sleep(0.3)
    if mode == "broken":
        print("cannot find the flux capacitor", file=sys.stderr)
        sys.exit(3)
    if mode == "family":
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    if mode != "mute":
        note("ready")
        print(f"ready {name} 127.0.0.1:1", flush=True)
    if mode == "crashing":
        print("about to divide by zero", flush=True)
        sys.exit(4)
    if mode == "talking":
        print("x" * 100_000 + "\nsecond line\r\nno newline at the end", end="", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
