"""The one place that reads and changes the process environment."""

from __future__ import annotations

import os

# The same stands in deploy/topology.toml for every service.
GRPC_EXPERIMENTS = "-event_engine_client,-event_engine_listener"


def current_environment() -> dict[str, str]:
    """A copy of the process environment."""
    return dict(os.environ)


def park_idle_threads() -> None:
    """OpenMP threads park between regions instead of spinning, unless the user says otherwise.

    Spinning threads take the cores from each other as soon as anything else runs here: a decode
    step then takes several times as long. Has an effect only before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def poll_where_events_are_taken() -> None:
    """gRPC polls in the thread that takes its events, unless the user says otherwise.

    With a thread for each, every message costs one more wake-up. Has an effect only before grpc is
    imported.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
