"""Hints for requests to paths that do not exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("//v1/chat/completions", CHAT),
        ("/v1//chat/completions", CHAT),
        ("/v1/v1/chat/completions", CHAT),
        ("/api/v1/chat/completions", CHAT),
        ("/openai/v1/chat/completions", CHAT),
        ("/v1/chat/completions/chat/completions", CHAT),
        ("/v1/chat/completion", CHAT),
        ("/chat/completion", CHAT),
        ("/V1/Chat/Completions", CHAT),
        ("/v1/chat/completons", CHAT),
        ("/completions", "/v1/completions"),
        ("/completion", "/v1/completions"),
        ("/v1/completions/", "/v1/completions"),
        ("/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1/model", "/v1/models"),
        ("/v1/generate", "/generate"),
        ("/generate/", "/generate"),
        ("/generate/batch/", "/generate/batch"),
        ("/v1/model/info", "/model/info"),
        ("/v1/metrics", "/metrics"),
        ("/healthz", "/health"),
        ("/", None),
        ("/v1", None),
        ("/v1/embeddings", None),
        ("/favicon.ico", None),
        ("/api/chat", None),
        ("/" + "a" * 5000, None),
    ],
)
async def test_hint_names_the_route_that_may_be_meant(
    gateway: Harness, path: str, meant: str | None
) -> None:
    async with gateway.client() as client:
        for method in ("POST", "GET"):
            reply = await client.request(method, f"http://gateway{path}", json={})
            if reply.status_code == 405:
                continue
            message = reply.json()["error"]["message"]
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")
            assert path in message
            assert message.endswith(f"did you mean {meant}?" if meant else "here")
