"""Whole stacks with the real model, each started once for all tests that share it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from millrace.config.home import millrace_home
from millrace.testing.stack import Stack, start_stack
from tests.e2e.client import Client

CACHE = Path(__file__).parents[2] / ".cache" / "e2e"
DEFAULT_MODEL = "smollm2-135m-instruct"


def _models() -> Path:
    """The user's models where the default one is there, else a folder of the tests' own."""
    users = millrace_home().models
    return users if (users / DEFAULT_MODEL).exists() else CACHE / "models"


@pytest.fixture(scope="session")
def models() -> Path:
    return _models()


@pytest.fixture(scope="session")
def stack(models: Path) -> Iterator[Stack]:
    """Float32, so that equality with transformers is exact."""
    settings = {"MILLRACE_WORKER_DTYPE": "float32"}
    with start_stack(CACHE / "float32", models, settings=settings) as started:
        yield started


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    """The response cache must have answered nothing: equality would prove nothing then."""
    connected = Client(stack)
    num_hits = await connected.num_response_cache_hits()
    yield connected
    assert await connected.num_response_cache_hits() == num_hits
    await connected.close()
