"""Whether the process lives, and whether it can take requests."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from millrace.bus.base import Bus
from millrace.core.answer import CacheStats
from millrace.core.errors import MillraceError

from .directory import ModelDirectory
from .ports import AnswerCache, Tokenizer

PROBE_TIMEOUT_S = 1.0
# Probes from several watchers share one answer of the tokenizer.
PROBE_LIFETIME_S = 0.5


@dataclass(frozen=True, slots=True)
class Readiness:
    """Ready: every needed part is there; `degraded` names parts that are gone but not needed.

    `reasons` tells of parts why they are gone.
    """

    is_ready: bool
    is_draining: bool
    checks: dict[str, bool] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`ready`, `not_ready` or `draining`."""
        if self.is_draining:
            return "draining"
        return "ready" if self.is_ready else "not_ready"


class Health:
    """Asks the neighbours. `cache` None: there is no response cache, by choice.

    `tell` hears of every answer before whoever asked: what is ready by one protocol is so by all.
    `loses_spans` says whether nobody takes the traces of this process.
    """

    def __init__(
        self,
        bus: Bus,
        tokenizer: Tokenizer,
        cache: AnswerCache | None,
        directory: ModelDirectory,
        is_draining: Callable[[], bool],
        tell: Callable[[bool], Awaitable[None]] | None = None,
        loses_spans: Callable[[], bool] = lambda: False,
    ) -> None:
        self._bus = bus
        self._tokenizer = tokenizer
        self._cache = cache
        self._directory = directory
        self._is_draining = is_draining
        self._tell = tell
        self._loses_spans = loses_spans
        self._started_s = time.monotonic()
        self._tokenizer_probe: tuple[float, bool] = (float("-inf"), False)

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started_s

    async def readiness(self) -> Readiness:
        """NATS, a tokenizer, and an attached scheduler with a worker of the default model."""
        tokenizer, cache = await asyncio.gather(self._probe_tokenizer(), self.cache_stats())
        default = self._directory.default_name
        attached = [model for model in self._directory.list() if model.info.name == default]
        checks = {
            "nats": self._bus.is_connected,
            "tokenizer": tokenizer,
            "scheduler": any(model.is_attached for model in attached),
            "worker": any(model.is_attached and model.num_workers for model in attached),
        }
        reasons = {}
        if self._cache is not None and not cache.connected:
            reasons["cache"] = cache.reason
        if self._loses_spans():
            reasons["collector"] = "traces are not taken"
        is_draining = self._is_draining()
        is_ready = all(checks.values()) and not is_draining
        if self._tell is not None:
            await self._tell(is_ready)
        return Readiness(is_ready, is_draining, checks, tuple(reasons), reasons)

    async def cache_stats(self) -> CacheStats:
        """Counts of the response cache; not connected where there is none."""
        if self._cache is None:
            return CacheStats(connected=False)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return await self._cache.stats()
        except (TimeoutError, MillraceError):
            return CacheStats(connected=False, reason="the cache service does not answer")

    async def _probe_tokenizer(self) -> bool:
        probed_s, is_ready = self._tokenizer_probe
        if time.monotonic() - probed_s < PROBE_LIFETIME_S:
            return is_ready
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                is_ready = await self._tokenizer.is_ready()
        except (TimeoutError, MillraceError):
            is_ready = False
        self._tokenizer_probe = (time.monotonic(), is_ready)
        return is_ready


def resident_bytes() -> int:
    """Memory of this process; the peak where the system does not tell the present."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * resource.getpagesize()
