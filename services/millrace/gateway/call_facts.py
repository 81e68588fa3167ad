"""What is known of one call at an edge: filled on the way, told once at its end."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millrace.core.errors import MillraceError

if TYPE_CHECKING:
    from .calls import Call

UNKNOWN_ROUTE = "unknown"


@dataclass(slots=True)
class CallFacts:
    """`route` is a pattern of ours or UNKNOWN_ROUTE; tokens are those of all parts of a batch.

    `is_probe`: watchers ask this all the time, and neither log nor trace should fill up with it.
    """

    edge: str = ""
    method: str = ""
    route: str = UNKNOWN_ROUTE
    path: str = ""
    peer: str = ""
    is_probe: bool = False
    started_ns: int = field(default_factory=time.perf_counter_ns)
    model: str = ""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    call: Call | None = None
    error: MillraceError | None = None

    @property
    def name(self) -> str:
        """Of the span of a call that does not generate."""
        return f"{self.method} {self.route}".lstrip()


_current: ContextVar[CallFacts | None] = ContextVar("call_facts", default=None)


def begin_facts(facts: CallFacts) -> CallFacts:
    """Makes `facts` those of this task and of the tasks that it starts."""
    _current.set(facts)
    return facts


def current_facts() -> CallFacts:
    """Those of the call that this task works for; new ones outside of any."""
    return _current.get() or CallFacts()
