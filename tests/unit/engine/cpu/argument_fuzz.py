"""Calls with wrong arguments, one after the other, to be run under the sanitizers (sanitizer.py).

python -m tests.unit.engine.cpu.argument_fuzz FOLDER SEED ROUNDS
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from millrace.engine.kernels.cpu.instruction_paths import choose_path
from millrace.engine.kernels.cpu.library import INVALID, OUT_OF_MEMORY, UNSUPPORTED
from tests.unit.engine.cpu.argument_calls import Call, Spot, all_calls
from tests.unit.engine.cpu.kernel_runner import KernelRunner, NativeRunner, make_runner

# Of arrays of the arguments so many numbers are tried; they are all looked at in the same way.
MAX_OF_AN_ARRAY = 6


class Fuzz:
    """Makes calls and counts by function what came of them."""

    def __init__(self, runner: NativeRunner, rng: np.random.Generator) -> None:
        self._runner, self._rng = runner, rng
        self.counts: Counter[str] = Counter()

    def try_right(self, call: Call) -> None:
        """The call as it is must do."""
        self._run(call, {})
        assert self.counts[f"{call.function} right"] > 0, self._runner.kernels().reason

    def try_each(self, call: Call) -> None:
        """Every spot with every wrong value, alone."""
        for spot in self._some_spots(call):
            for value in spot.wrong_values():
                with spot.set_to(value):
                    self._run(call, {spot.name: value})

    def try_together(self, call: Call, rounds: int) -> None:
        """Two to four spots at a time."""
        spots = self._some_spots(call)
        for _ in range(rounds):
            chosen = self._rng.permutation(len(spots))[: int(self._rng.integers(2, 5))]
            wrong = {}
            with ExitStack() as stack:
                for spot in (spots[index] for index in chosen):
                    values = spot.wrong_values()
                    if not values:
                        continue
                    wrong[spot.name] = values[int(self._rng.integers(len(values)))]
                    stack.enter_context(spot.set_to(wrong[spot.name]))
                self._run(call, wrong)

    def _some_spots(self, call: Call) -> list[Spot]:
        spots = list(call.spots())
        by_array: dict[str, list[Spot]] = {}
        for spot in spots:
            name, bracket, _ = spot.name.partition("[")
            if bracket and name in call.arrays:
                by_array.setdefault(name, []).append(spot)
        kept = [spot for spot in spots if spot.name.partition("[")[0] not in by_array]
        for found in by_array.values():
            places = self._rng.permutation(len(found))[:MAX_OF_AN_ARRAY]
            kept += [found[0], found[-1], *(found[place] for place in places)]
        return kept

    def _run(self, call: Call, wrong: dict[str, Any]) -> None:
        code = call.run(self._runner)
        is_size = call.function.endswith("_bytes")
        outcome = -code if is_size and code < 0 else 0 if is_size and code > 0 else code
        known = (0, OUT_OF_MEMORY, UNSUPPORTED, INVALID)
        assert outcome in known, f"{call.function} with {wrong} returned {code}"
        reason = self._runner.kernels().reason
        if outcome in (UNSUPPORTED, INVALID):
            assert reason and "\n" not in reason, f"{call.function} with {wrong} gives no reason"
        self.counts[f"{call.function} {'right' if outcome == 0 else 'refused'}"] += 1


def main(folder: Path, seed: int, rounds: int) -> None:
    """Prints how many calls of each function there were."""
    path = choose_path("auto")
    assert path is not None
    runner: KernelRunner = make_runner(path.name, folder)
    assert isinstance(runner, NativeRunner)
    rng = np.random.default_rng(seed)
    fuzz = Fuzz(runner, rng)
    for call in all_calls(rng, runner):
        fuzz.try_right(call)
        fuzz.try_each(call)
        fuzz.try_together(call, rounds)
    print(json.dumps(fuzz.counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
