"""Progress as lines of text: `packed layer 3 of 30`."""

from __future__ import annotations

import re
from collections.abc import Callable

_STEP = re.compile(r".*\b(\d+) of (\d+)")


def only_last_steps(report: Callable[[str], None]) -> Callable[[str], None]:
    """For logs, which keep every line: of steps only the last is passed on."""

    def passed_on(text: str) -> None:
        step = _STEP.fullmatch(text)
        if step is None or step[1] == step[2]:
            report(text)

    return passed_on
