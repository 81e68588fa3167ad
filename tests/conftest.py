"""Property tests draw the same examples each time and have no time limit."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A loaded machine must not fail a test that is right. MILLRACE_TEST_EXAMPLES=1000 seeks harder.
settings.register_profile(
    "millrace",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    max_examples=int(os.environ.get("MILLRACE_TEST_EXAMPLES", "60")),
)
settings.load_profile("millrace")
