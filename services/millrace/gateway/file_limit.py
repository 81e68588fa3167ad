"""File descriptors: as many as the connections need, or as many connections as there are."""

from __future__ import annotations

import logging
import resource

_log = logging.getLogger(__name__)

# Listeners, logs, channels to neighbours, the bus; and connections that wait for their refusal.
NUM_OWN_FILES = 256
NUM_EDGES = 2


def allowed_connections(max_connections: int) -> int:
    """How many connections each edge may hold; raises the soft limit where that is needed.

    Without descriptors to accept with, a server can neither serve nor refuse.
    """
    needed = NUM_EDGES * max_connections + max_connections // 8 + NUM_OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return max_connections
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (ValueError, OSError):
        most = soft
    if most >= needed:
        return max_connections
    allowed = max(1, (most - NUM_OWN_FILES) // (NUM_EDGES + 1))
    _log.warning("only %d connections per edge: this process may open %d files", allowed, most)
    return min(allowed, max_connections)
