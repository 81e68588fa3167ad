"""What a full queue means for a request: when to come back, or that it would come too late."""

from __future__ import annotations

from millrace.core.errors import Overloaded
from millrace.core.model import ModelInfo
from millrace.core.request import Priority

from .directory import ModelDirectory
from .drain_rate import DrainRate, clamped
from .frames import FrameRouter


class QueueForecast:
    """The drain rate, with what the scheduler told and what this gateway holds."""

    def __init__(self, rate: DrainRate, directory: ModelDirectory, router: FrameRouter) -> None:
        self.rate = rate
        self._directory = directory
        self._router = router

    def require_time(self, info: ModelInfo, priority: Priority, left_s: float) -> None:
        """Raises `Overloaded` where the request would still wait when its deadline passes."""
        if priority is Priority.HIGH:
            # It overtakes what waits.
            return
        forecast = self.rate.forecast(
            info.name, self._directory.status(info.name), self._router.num_live_of(info.name)
        )
        if forecast is None or forecast.wait_s <= left_s:
            return
        raise Overloaded(
            f"{forecast.num_waiting} requests of {info.name} wait and "
            f"{forecast.finished_per_s:.3g} end per second, so this one would start in about "
            f"{forecast.wait_s:.3g} s; its deadline is in {left_s:.3g} s",
            metadata={
                "num_waiting": str(forecast.num_waiting),
                "finished_per_s": f"{forecast.finished_per_s:.3g}",
                "wait_s": f"{forecast.wait_s:.3g}",
                "left_s": f"{left_s:.3g}",
            },
            retry_after_s=clamped(forecast.wait_s),
        )

    def retry_after_s(self, info: ModelInfo, default_s: float | None = None) -> float:
        """When a refused client may come back; `default_s` where nothing has ended lately."""
        found = self.rate.retry_after_s(
            info.name, self._directory.status(info.name), self._router.num_live_of(info.name)
        )
        return clamped(default_s or 0.0) if found is None else found
