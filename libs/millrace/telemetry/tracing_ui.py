"""The tracing UI of one MILLRACE_HOME: where it lies, and whether it runs.

`millrace trace-ui` writes what the span collector of the same home reads, so that a stack forwards
to its own UI and never to another's.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from millrace.config.home import Home

FOLDER_NAME = "trace-ui"


@dataclass(frozen=True, slots=True)
class RunningUi:
    """A process that serves the UI on loopback."""

    pid: int
    port: int


@dataclass(frozen=True, slots=True)
class UiFolder:
    """What lies under MILLRACE_HOME/trace-ui."""

    root: Path

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.root / "venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    @property
    def data(self) -> Path:
        """Phoenix' database."""
        return self.root / "data"

    @property
    def replayed(self) -> Path:
        """How far the span store has been shown to it."""
        return self.root / "replayed.json"

    @property
    def run_file(self) -> Path:
        """Process id and port of the one that runs."""
        return self.root / "run.json"

    def write_running(self, ui: RunningUi) -> None:
        """Tells the collector of the same home."""
        self.run_file.write_text(json.dumps(asdict(ui)), encoding="utf-8")

    def running(self) -> RunningUi | None:
        """The one that runs, or None."""
        try:
            document = json.loads(self.run_file.read_text(encoding="utf-8"))
            ui = RunningUi(int(document["pid"]), int(document["port"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # The number may belong to somebody else by now.
        return ui if str(self.python) in command_of(ui.pid) else None


def ui_folder(home: Home) -> UiFolder:
    """Where the tracing UI is installed."""
    return UiFolder(home.root / FOLDER_NAME)


def command_of(pid: int) -> str:
    """The process's command line; empty if it has ended."""
    proc = Path("/proc/self/cmdline")
    if proc.exists():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return ""
        return " ".join(os.fsdecode(word) for word in words)
    listed = subprocess.run(
        ["ps", "-ww", "-p", str(pid), "-o", "args="], capture_output=True, check=False
    )
    return os.fsdecode(listed.stdout).strip()
