"""Which models there are, and how well each is served now."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from millrace.core.errors import Unavailable, UnknownModel
from millrace.core.membership import SchedulerStatus, WorkerRegistration
from millrace.core.model import ModelInfo
from millrace.core.sampling import SamplingDefaults

RETRY_AFTER_S = 2.0
MAX_NAMES_IN_ERROR = 10
MAX_NAME_CHARS = 64


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as this gateway knows it."""

    info: ModelInfo
    num_workers: int
    is_attached: bool
    created_unix_s: int


@dataclass(slots=True)
class _Entry:
    info: ModelInfo
    created_unix_s: int
    is_attached: bool = False
    status: SchedulerStatus | None = None


class ModelDirectory:
    """Fed by worker registrations and scheduler statuses.

    A model stays known once seen: while its last worker restarts it is unavailable, not unknown.
    `takes_model_defaults` False: requests that are silent get the defaults of the OpenAI API.
    `on_new` hears of each model.
    """

    def __init__(
        self,
        default_model: str = "",
        *,
        takes_model_defaults: bool = True,
        unix_time_s: Callable[[], float] = time.time,
        on_new: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._default_model = default_model
        self._on_new = on_new
        self._takes_model_defaults = takes_model_defaults
        self._unix_time_s = unix_time_s
        self._entries: dict[str, _Entry] = {}
        self._workers: dict[str, WorkerRegistration] = {}

    def on_worker(self, worker_id: str, registration: WorkerRegistration | None) -> None:
        """A worker came, renewed its entry, or (None) went."""
        if registration is None:
            self._workers.pop(worker_id, None)
            return
        self._workers[worker_id] = registration
        self._see(registration.model)

    def on_status(self, status: SchedulerStatus) -> None:
        """The attached scheduler of a model told its state."""
        # A scheduler that never had a worker knows only the name.
        if status.model.vocab_size:
            self._see(status.model)
        if entry := self._entries.get(status.model.name):
            entry.is_attached = True
            entry.status = status

    def on_detached(self, model: str) -> None:
        """The stream to the model's scheduler is down."""
        if entry := self._entries.get(model):
            entry.is_attached = False
            entry.status = None

    @property
    def default_name(self) -> str:
        """Served name of the default model; empty where there is none yet."""
        if self._default_model:
            found = self._match(self._default_model)
            return found.info.name if found else self._default_model
        return next(iter(self._entries), "")

    def find(self, name: str) -> ModelInfo:
        """The model that answers to `name`; empty takes the default.

        Raises `UnknownModel` naming what there is, `Unavailable` while nothing has registered, or
        the default model has not.
        """
        wanted = name or self.default_name
        if entry := self._match(wanted):
            return entry.info
        if not self._entries or wanted in ("", self._default_model):
            raise Unavailable("no model has registered yet", retry_after_s=RETRY_AFTER_S)
        raise UnknownModel(
            f"there is no model {name[:256]!r} here; {self._served()}", field="model"
        )

    def require_served(self, info: ModelInfo) -> None:
        """Raises `Unavailable` where no scheduler with a worker can take a request now."""
        entry = self._entries[info.name]
        if not entry.is_attached:
            what = "scheduler"
        elif self.num_workers(info.name) == 0:
            what = "worker"
        else:
            return
        raise Unavailable(
            f"no {what} of {info.name} is attached now", retry_after_s=RETRY_AFTER_S, field="model"
        )

    def get(self, name: str) -> ServedModel:
        """As `find`, with how it is served."""
        entry = self._entries[self.find(name).name]
        return ServedModel(
            entry.info, self.num_workers(entry.info.name), entry.is_attached, entry.created_unix_s
        )

    def list(self) -> list[ServedModel]:
        """Every model, the default one first, then by name."""
        default = self.default_name
        names = sorted(self._entries, key=lambda name: (name != default, name))
        return [self.get(name) for name in names]

    def status(self, model: str) -> SchedulerStatus | None:
        """What the model's scheduler told last; None while none is attached."""
        entry = self._entries.get(model)
        return None if entry is None else entry.status

    def num_workers(self, model: str) -> int:
        """Workers that serve the model: as its scheduler says, else as registered."""
        entry = self._entries.get(model)
        if entry is not None and entry.status is not None:
            return entry.status.num_workers
        return sum(worker.model.name == model for worker in self._workers.values())

    def _served(self) -> str:
        names = sorted(self._entries)
        more = len(names) - MAX_NAMES_IN_ERROR
        shown = ", ".join(name[:MAX_NAME_CHARS] for name in names[:MAX_NAMES_IN_ERROR])
        return f"this server has {shown}" + (f" and {more} more" if more > 0 else "")

    def _match(self, name: str) -> _Entry | None:
        if name in self._entries:
            return self._entries[name]
        return next((e for e in self._entries.values() if e.info.answers_to(name)), None)

    def _see(self, info: ModelInfo) -> _Entry:
        if not self._takes_model_defaults:
            info = replace(info, default_sampling=SamplingDefaults())
        entry = self._entries.get(info.name)
        if entry is None:
            entry = self._entries[info.name] = _Entry(info, int(self._unix_time_s()))
            self._on_new(info.name)
        elif info.config_json == "{}":
            entry.info = replace(info, config_json=entry.info.config_json)
        else:
            entry.info = info
        return entry
