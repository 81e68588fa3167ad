"""What one connection may cost, and how many there may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _ignore(client: tuple[str, int] | None) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`max_connections` are served at once. One too many is told so when it asks something.

    `head_timeout_s`: from the connection, or from the first byte of a later request, to the end of
    its headers; connections that are too many have `refusal_timeout_s` to ask.
    `body_timeout_s`, `min_body_rate`: see `BodyClock`. `on_turned_away` hears of each connection
    that was too many.
    """

    max_connections: int = 4096
    head_timeout_s: float = 10.0
    refusal_timeout_s: float = 1.0
    body_timeout_s: float = 30.0
    min_body_rate: float = 512.0
    on_turned_away: Callable[[tuple[str, int] | None], None] = _ignore

    @property
    def max_refused(self) -> int:
        """Connections whose request is awaited; those beyond are refused before they ask.

        A refusal that crosses its request may be lost on the way.
        """
        return max(8, self.max_connections // 8)


DEFAULT_LIMITS = ConnectionLimits()
