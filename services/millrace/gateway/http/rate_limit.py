"""`x-ratelimit-*-requests` as clients of the OpenAI API know them, on replies that generate.

The limit is that of requests held at once, the one limit whose numbers this gateway knows exactly.
There are no `-tokens` headers, since it limits no tokens; the limits of queue and scheduler lie
elsewhere and are felt as 429 with Retry-After.
"""

from __future__ import annotations

from millrace.gateway.drain_rate import Load

S_PER_MINUTE = 60


def rate_limit_headers(load: Load) -> list[tuple[str, str]]:
    """Limit, what is left of it, and, where requests have ended lately, when all of it is back."""
    headers = [
        ("x-ratelimit-limit-requests", str(load.max_in_flight)),
        ("x-ratelimit-remaining-requests", str(load.num_left)),
    ]
    if load.drained_in_s is not None:
        headers.append(("x-ratelimit-reset-requests", duration_text(load.drained_in_s)))
    return headers


def duration_text(seconds: float) -> str:
    """As that API writes durations: `0s`, `350ms`, `12s`, `2m5s`."""
    if 0 < seconds < 1:
        return f"{max(1, round(seconds * 1000))}ms"
    minutes, left = divmod(round(seconds), S_PER_MINUTE)
    return f"{minutes}m{left}s" if minutes else f"{left}s"
