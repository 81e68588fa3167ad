"""Behaves like a service, or badly: fake_service.py NAME MODE JOURNAL PORT."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from types import FrameType

NAME, MODE, JOURNAL = sys.argv[1:4]


def main() -> None:
    """Writes what happens to the journal; MODE says how it misbehaves."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN if MODE == "stubborn" else end)
    note("start")
    before_ready()
    listener = (
        socket.create_server(("127.0.0.1", int(sys.argv[4]))) if MODE == "answering" else None
    )
    if MODE != "mute":
        note("ready")
        print(f"ready {NAME} 127.0.0.1:1", flush=True)
    after_ready()
    while listener is not None:
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")
        connection.close()
    while True:
        signal.pause()


def before_ready() -> None:
    """What is to go wrong, or slowly, before it is ready."""
    if MODE == "slow":
        time.sleep(0.3)
    if MODE == "broken":
        print("cannot find the flux capacitor", file=sys.stderr)
        sys.exit(3)
    if MODE == "family":
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])


def after_ready() -> None:
    """What is to go wrong once it is ready."""
    num_crashes = {"crashing": sys.maxsize, "crashing_thrice": 3, "crashing_once": 1}
    if num_starts() <= num_crashes.get(MODE, 0):
        print("about to divide by zero", flush=True)
        sys.exit(4)
    if MODE == "talking":
        print("x" * 100_000 + "\nsecond line\r\nno newline at the end", end="", flush=True)


def note(event: str) -> None:
    """Adds a line to the journal."""
    with open(JOURNAL, "a", encoding="utf-8") as file:
        file.write(f"{event} {NAME}\n")


def num_starts() -> int:
    """Starts so far, this one included."""
    with open(JOURNAL, encoding="utf-8") as file:
        return file.read().count(f"start {NAME}")


def end(number: int, frame: FrameType | None) -> None:
    """On SIGTERM."""
    note("stop")
    sys.exit(0)


if __name__ == "__main__":
    main()
