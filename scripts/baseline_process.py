"""The driving side of `generate_baseline.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent / "generate_baseline.py"


class BaselineProcess:
    """transformers in a process of its own; it sleeps between two runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tokens_per_s(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Runs the prompts one after another, `num_tokens` new tokens each."""
        assert self._process.stdin is not None
        order = {"prompts": [list(ids) for ids in prompts], "num_tokens": num_tokens}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self.read()
        return float(answer["num_tokens"]) / float(answer["seconds"])

    def read(self) -> dict[str, Any]:
        """The next answer. Raises RuntimeError where the process ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the baseline ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def start_baseline(model: Path, dtype: str, num_threads: int) -> Iterator[BaselineProcess]:
    """Loads the model and waits until it is ready."""
    command = [sys.executable, str(SCRIPT), "--model", str(model)]
    command += ["--dtype", dtype, "--threads", str(num_threads)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            baseline = BaselineProcess(process)
            baseline.read()
            yield baseline
        finally:
            # Its loop ends with its input.
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)
