"""What may draw in the sampler's place: something faster that knows when it cannot be sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from millrace.core.sampling import SamplingSpec


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """One token to draw by `spec`, unedited and not greedy, from row `row` of the logits."""

    row: int
    spec: SamplingSpec
    position: int
    choice: int


class Drawer(Protocol):
    """Draws the very tokens that the sampler draws, each whatever the others are."""

    def draw(
        self, logits: npt.NDArray[np.float32], requests: Sequence[DrawRequest]
    ) -> list[int | None]:
        """The token of each request, or None where the sampler has to decide.

        `logits` [R, V]; the numbers of a row lie side by side.
        """
        ...
