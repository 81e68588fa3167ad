"""`pip install` with one line of progress, and its own words in a file."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from millrace.core.errors import Unavailable

_FOUND = re.compile(r"Collecting (\S+)")
_LOADING = re.compile(r"\s*(?:Downloading|Using cached) (\S+) \((\d+(?:\.\d+)?) ([kM])B\)")
_INSTALLING = "Installing collected packages"
_INSTALLED = re.compile(r"Successfully installed (.+)")
_REDRAW_S = 0.1
_LINE_EVERY_S = 10.0
_TICK_S = 1.0
NUM_SHOWN_LINES = 10


def pip_install(
    python: Path, packages: Sequence[str], log: Path, environ: Mapping[str, str]
) -> None:
    """Installs into the environment of `python`. Raises `Unavailable` with pip's last words."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    command += ["--progress-bar", "off", *packages]
    progress = PipProgress(sys.stdout, log)
    last: list[str] = []
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        progress.running(),
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            last = [*last[1 - NUM_SHOWN_LINES :], line.rstrip()]
            progress.hear(line)
    progress.end()
    if process.returncode != 0:
        shown = "\n    ".join(last)
        raise Unavailable(f"pip ended with status {process.returncode}; see {log}\n    {shown}")


class PipProgress:
    """What pip has come to: redrawn on a terminal, now and then a line elsewhere.

    Its last line names `log`, where pip's own words are.
    """

    def __init__(self, stream: TextIO, log: Path) -> None:
        self._stream = stream
        self._log = log
        self._lock = threading.Lock()
        self._began_s = self._shown_s = time.monotonic()
        self._num_found = self._num_loaded = 0
        self._megabytes = 0.0
        self._name = ""
        self._is_installing = False
        self._num_installed = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Shows how time goes on while pip says nothing: one large file takes minutes."""
        is_over = threading.Event()

        def tick() -> None:
            while not is_over.wait(_TICK_S):
                self._show()

        ticker = threading.Thread(target=tick, name="pip progress", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            is_over.set()
            ticker.join()

    def hear(self, line: str) -> None:
        """One line of pip's."""
        if found := _FOUND.match(line):
            self._num_found += 1
            self._name = found[1]
        elif found := _LOADING.match(line):
            if not found[1].endswith(".metadata"):
                self._num_loaded += 1
            self._megabytes += float(found[2]) / (1000 if found[3] == "k" else 1)
            self._name = found[1]
        elif line.startswith(_INSTALLING):
            self._is_installing = True
        elif found := _INSTALLED.match(line):
            self._num_installed = len(found[1].split())
        self._show()

    def end(self) -> None:
        """Closes the line."""
        with self._lock:
            self._write(is_last=True)

    @property
    def text(self) -> str:
        """How far it is."""
        seconds = round(time.monotonic() - self._began_s)
        if self._num_installed:
            return f"installed {self._num_installed} packages in {seconds} s"
        if self._is_installing:
            return f"installing {self._num_loaded} packages, {seconds} s"
        counts = f"{self._num_loaded} of {max(self._num_found, self._num_loaded)} packages"
        name = self._name[:30]
        return f"downloading: {counts}, {self._megabytes:.0f} MB, {seconds} s, {name}"

    def _show(self) -> None:
        every_s = _REDRAW_S if self._stream.isatty() else _LINE_EVERY_S
        with self._lock:
            if not self._num_installed and time.monotonic() - self._shown_s >= every_s:
                self._write(is_last=False)

    def _write(self, *, is_last: bool) -> None:
        self._shown_s = time.monotonic()
        text = f"{self.text} (log: {self._log})" if is_last else self.text
        if self._stream.isatty():
            self._stream.write(f"\r{text}\x1b[K" + ("\n" if is_last else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
