"""How many tokens were sampled for each request, in a file that outlives the worker that counts."""

from __future__ import annotations

import mmap
from array import array
from pathlib import Path
from typing import Final

TYPE_CODE: Final = "I"
NUM_BYTES = array(TYPE_CODE).itemsize


class SampleCounts:
    """One number per seed below `num_seeds`, shared by every process that opens the file."""

    def __init__(self, path: Path, num_seeds: int) -> None:
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(num_seeds * NUM_BYTES)
            self._counts = memoryview(mmap.mmap(file.fileno(), 0)).cast(TYPE_CODE)

    def add(self, seed: int) -> None:
        """One more token of the request with that seed."""
        self._counts[seed] += 1

    def __getitem__(self, seed: int) -> int:
        return int(self._counts[seed])
