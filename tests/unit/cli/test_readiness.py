"""What /ready says, in words that name the part."""

from __future__ import annotations

from typing import Any

import pytest

from millrace.cli.readiness import describe_readiness, missing_parts

CHECKS = {"nats": True, "tokenizer": True, "scheduler": True, "worker": True}


def answer(status: str, *missing: str, degraded: tuple[str, ...] = ()) -> dict[str, Any]:
    checks = {name: name not in missing for name in CHECKS}
    return {"status": status, "checks": checks, "degraded": list(degraded)}


@pytest.mark.parametrize(
    ("status", "document", "said"),
    [
        (200, answer("ready"), "ready"),
        (200, answer("ready", degraded=("cache",)), "ready, without cache"),
        (
            200,
            answer("ready", degraded=("cache",)) | {"reasons": {"cache": "WRONGPASS"}},
            "ready, without cache (WRONGPASS)",
        ),
        (503, answer("not_ready", "worker"), "not ready: no worker is attached"),
        (503, answer("not_ready", "worker", "scheduler"), "not ready: no scheduler is attached"),
        (503, answer("not_ready", "worker", "nats"), "not ready: NATS does not answer"),
        (503, answer("draining"), "draining: the gateway takes no new requests"),
        (503, None, "not ready: the gateway answers with 503"),
        (0, None, "the gateway does not answer"),
    ],
)
def test_readiness_is_a_sentence(status: int, document: Any, said: str) -> None:
    assert describe_readiness(status, document) == said


def test_the_likeliest_cause_comes_first() -> None:
    assert missing_parts(answer("not_ready", "worker", "scheduler")) == ["scheduler", "worker"]
    assert missing_parts({"checks": {"worker": False, "disk": False}}) == ["worker", "disk"]
