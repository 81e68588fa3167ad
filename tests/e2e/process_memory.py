"""How memory and open files of a stack's processes change over a long time."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from millrace.testing.stack import Stack

SAMPLE_EVERY_S = 2.0
# A line through fewer seconds than this says nothing.
LEAST_WINDOW_S = 60.0
BYTES_PER_MB = 1e6
# What start-up, first faults and the allocator may still take, however short the run.
SETTLING_MB = 8.0


@dataclass
class Usage:
    """One process from its start: (seconds, bytes resident, open files)."""

    name: str
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def after(self, at_s: float) -> list[tuple[float, int, int]]:
        return [sample for sample in self.samples if sample[0] >= at_s]

    def slope_mb_per_min(self, warm_up_s: float) -> float | None:
        """Least squares over what comes after its warm-up; None where that is too short."""
        samples = self.after(self.samples[0][0] + warm_up_s)
        if not samples or samples[-1][0] - samples[0][0] < LEAST_WINDOW_S:
            return None
        mean_s = sum(at_s for at_s, _, _ in samples) / len(samples)
        mean_b = sum(num_bytes for _, num_bytes, _ in samples) / len(samples)
        top = sum((at_s - mean_s) * (num_bytes - mean_b) for at_s, num_bytes, _ in samples)
        bottom = sum((at_s - mean_s) ** 2 for at_s, _, _ in samples)
        return 60.0 * top / bottom / BYTES_PER_MB

    def growth_mb(self, warm_up_s: float) -> float:
        """From the end of its warm-up to its last sample."""
        samples = self.after(self.samples[0][0] + warm_up_s)
        return (samples[-1][1] - samples[0][1]) / BYTES_PER_MB

    @property
    def lived_s(self) -> float:
        """Between its first and its last sample."""
        return self.samples[-1][0] - self.samples[0][0]

    @property
    def num_files(self) -> int:
        """At the last look."""
        return self.samples[-1][2]

    def most_files(self, share: float) -> int:
        """The most in the first `share` of its life."""
        until_s = self.samples[0][0] + share * self.lived_s
        return max(num_files for at_s, _, num_files in self.samples if at_s <= until_s)


class MemoryWatch:
    """Samples every process of a stack, under each process id that it ever had."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.usages: dict[int, Usage] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_EVERY_S)

    def sample(self) -> None:
        """One look at every process."""
        now_s = time.monotonic()
        record = self._stack.run_file()
        names = {int(record["pid"]): "supervisor"}
        names |= {int(each["pid"]): str(each["name"]) for each in record["processes"]}
        for pid, name in names.items():
            try:
                sample = now_s, _resident_bytes(pid), len(os.listdir(f"/proc/{pid}/fd"))
            except (FileNotFoundError, ProcessLookupError):
                # It has been killed a moment ago.
                continue
            self.usages.setdefault(pid, Usage(name)).samples.append(sample)

    def alive(self) -> list[Usage]:
        """Processes that were there at the last look."""
        latest_s = max(usage.samples[-1][0] for usage in self.usages.values())
        return [usage for usage in self.usages.values() if usage.samples[-1][0] == latest_s]


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
