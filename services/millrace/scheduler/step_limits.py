"""How large the steps of one worker may be after it ran out of memory."""

from __future__ import annotations

from .budget import CHUNK_MULTIPLE

RECOVERY_STEPS = 64
OUT_OF_MEMORY_TYPES = frozenset({"MemoryError", "OutOfMemoryError"})
# torch on the CPU raises a plain RuntimeError that names its allocator.
CPU_ALLOCATOR = "DefaultCPUAllocator"


def is_out_of_memory(failure: str) -> bool:
    """True for the failure text of a step that did not fit: `<exception type>: <message>`."""
    return failure.partition(":")[0] in OUT_OF_MEMORY_TYPES or CPU_ALLOCATOR in failure


class StepLimits:
    """Halved by a step that did not fit, doubled by 64 steps in a row that did."""

    def __init__(self, max_rows: int, max_prefill_tokens: int) -> None:
        self._most = (max_rows, max_prefill_tokens)
        self.max_rows = max_rows
        self.max_prefill_tokens = max_prefill_tokens
        self._num_good_steps = 0

    def shrink(self, num_rows: int, num_prefill_tokens: int) -> bool:
        """Has steps be half as large as the one that failed; False where none can be smaller."""
        self._num_good_steps = 0
        has_smaller = num_rows > 1 or num_prefill_tokens > CHUNK_MULTIPLE
        self.max_rows = min(self.max_rows, max(1, num_rows // 2))
        if num_prefill_tokens:
            half = max(CHUNK_MULTIPLE, num_prefill_tokens // 2)
            self.max_prefill_tokens = min(self.max_prefill_tokens, half)
        return has_smaller

    def note_good_step(self) -> None:
        """A step with work in it went through."""
        if (self.max_rows, self.max_prefill_tokens) == self._most:
            return
        self._num_good_steps += 1
        if self._num_good_steps >= RECOVERY_STEPS:
            self._num_good_steps = 0
            self.max_rows = min(2 * self.max_rows, self._most[0])
            self.max_prefill_tokens = min(2 * self.max_prefill_tokens, self._most[1])
