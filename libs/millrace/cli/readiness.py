"""What the gateway's /ready means, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What the gateway finds wrong if a check fails, in the order in which one thing needs another.
_MISSING = {
    "nats": "NATS does not answer",
    "tokenizer": "no tokenizer answers",
    "scheduler": "no scheduler is attached",
    "worker": "no worker is attached",
}


def missing_parts(answer: Mapping[str, Any] | None) -> list[str]:
    """Names of the parts without which requests cannot be served, the likeliest cause first."""
    checks = (answer or {}).get("checks") or {}
    return [name for name in dict.fromkeys((*_MISSING, *checks)) if checks.get(name) is False]


def describe_readiness(status: int, answer: Mapping[str, Any] | None) -> str:
    """`ready`, or what is wrong; `status` 0: nobody answered."""
    if status == 0:
        return "the gateway does not answer"
    if missing := missing_parts(answer):
        return f"not ready: {_MISSING.get(missing[0], missing[0] + ' is missing')}"
    if (answer or {}).get("status") == "draining":
        return "draining: the gateway takes no new requests"
    if status != 200:
        return f"not ready: the gateway answers with {status}"
    lost = _lost_parts(answer or {})
    return f"ready, without {', '.join(lost)}" if lost else "ready"


def _lost_parts(answer: Mapping[str, Any]) -> list[str]:
    """Parts that are gone but not needed, each with its reason: `cache (connection refused)`."""
    reasons = answer.get("reasons") or {}
    parts = answer.get("degraded") or ()
    return [f"{part} ({reasons[part]})" if reasons.get(part) else part for part in parts]
