"""Fixtures of the scheduler's service tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from millrace.scheduler import intake
from tests.unit.scheduler_service.desk import Desk


@pytest.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    for name in ("TICK_S", "IN_PROGRESS_EVERY_S", "RETRY_S"):
        monkeypatch.setattr(intake, name, 0.01)
    made = Desk()
    made.start()
    yield made
    await made.stop()
