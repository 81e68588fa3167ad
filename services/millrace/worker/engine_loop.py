"""The model's own thread: plans in, results out, decode steps on the lease in between.

The event loop of the service never runs a model step, so it answers while one is under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from millrace.core.errors import InternalError, MillraceError, Unavailable
from millrace.core.step import PlanRefused, StepPlan, StepResult

_log = logging.getLogger(__name__)


class StepEngine(Protocol):
    """What the loop needs of an engine."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Applies a plan and runs its one step."""

    def run_lease_step(self) -> StepResult | None:
        """One more decode step; None where no row can run."""

    def reset(self) -> None:
        """Drops all rows."""

    @property
    def live_rows(self) -> list[int]:
        """Rows taken and not finished."""

    @property
    def progress(self) -> int:
        """Rises while a step is under way."""


Deliver = Callable[[StepResult], None]


def _ignore(*_: object) -> None:
    """Nobody listens."""


class Session:
    """One owner's use of the engine: its plans, its results, its end.

    The callbacks run in the engine's thread: `on_ready` once the rows of the last owner are gone,
    `deliver` once per step in order, `on_error` where the engine ends the session.
    """

    def __init__(
        self,
        deliver: Deliver,
        on_ready: Callable[[], None] = _ignore,
        on_error: Callable[[MillraceError], None] = _ignore,
    ) -> None:
        self.deliver = deliver
        self.on_ready = on_ready
        self.on_error = on_error
        self.plans: deque[StepPlan] = deque()
        self.lease_steps = 0


class EngineLoop:
    """Runs one engine in one thread. All methods may be called from any other thread.

    `failure` is why the thread has ended, where nobody asked it to: the engine is lost then, and
    the process is of no further use.
    """

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self._wake = threading.Condition()
        self._session: Session | None = None
        self._is_stopping = False
        self.num_steps = 0
        self.num_sampled_tokens = 0
        self.last_step_ns = 0
        self.is_stepping = False
        self.failure: InternalError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def num_rows(self) -> int:
        """Rows in use; read without a lock, so a step old at the worst."""
        return len(self._engine.live_rows)

    @property
    def progress(self) -> int:
        """How far the engine has come; rises with every layer of a step."""
        return self._engine.progress

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends after the step under way."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def open_session(
        self,
        deliver: Deliver,
        on_ready: Callable[[], None] = _ignore,
        on_error: Callable[[MillraceError], None] = _ignore,
    ) -> Session:
        """Gives the engine to a new owner; see `Session`.

        Raises `Unavailable` where the engine is lost.
        """
        session = Session(deliver, on_ready, on_error)
        with self._wake:
            if self.failure is not None:
                raise Unavailable("the engine of this worker has ended")
            self._session = session
            self._wake.notify()
        return session

    def close_session(self, session: Session) -> None:
        """Takes the engine from its owner; nothing more is delivered to it."""
        with self._wake:
            if self._session is session:
                self._session = None
                self._wake.notify()

    def submit(self, session: Session, plan: StepPlan) -> None:
        """Queues a plan; ignored where the session is over."""
        with self._wake:
            if self._session is session:
                session.plans.append(plan)
                self._wake.notify()

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as exc:
            _log.critical("the engine has ended", exc_info=True)
            with self._wake:
                self.failure = InternalError(f"the engine is lost: {type(exc).__name__}: {exc}")
                session, self._session = self._session, None
            if session is not None:
                session.on_error(self.failure)

    def _serve(self) -> None:
        active: Session | None = None
        while not self._is_stopping:
            session, plan = self._next_work(active)
            if session is not active:
                self._engine.reset()
                active = session
                if session is not None:
                    session.on_ready()
            elif session is not None:
                self._serve_step(session, plan)

    def _serve_step(self, session: Session, plan: StepPlan | None) -> None:
        try:
            result = self._run_step(session, plan)
        except PlanRefused as error:
            # Its rows are not those of its owner any more: whoever comes next finds none.
            _log.exception("a plan does not fit the rows that are here; dropping them all")
            self.close_session(session)
            session.on_error(error)
            return
        if result is not None and session is self._session:
            session.deliver(result)

    def _next_work(self, active: Session | None) -> tuple[Session | None, StepPlan | None]:
        """Waits for a change of owner, a plan, or a step on the lease: (active, None)."""
        with self._wake:
            while not self._is_stopping and self._session is active:
                if active is not None and active.plans:
                    return active, active.plans.popleft()
                if active is not None and active.lease_steps > 0:
                    return active, None
                self._wake.wait()
            return (None if self._is_stopping else self._session), None

    def _run_step(self, session: Session, plan: StepPlan | None) -> StepResult | None:
        if plan is None:
            session.lease_steps -= 1
            result = self._guarded(None)
            if result is None:
                session.lease_steps = 0
        else:
            result = self._guarded(plan)
            # A failed step ends its lease: nobody knows yet what to run again.
            session.lease_steps = 0 if result is None or result.failure else plan.lease_steps
        if result is not None:
            self.num_steps += 1
            self.num_sampled_tokens += len(result.tokens)
            self.last_step_ns = result.step_ns
        return result

    def _guarded(self, plan: StepPlan | None) -> StepResult | None:
        started_ns, started_unix_ns = time.perf_counter_ns(), time.time_ns()
        self.is_stepping = True
        try:
            return self._engine.run_lease_step() if plan is None else self._engine.execute(plan)
        except PlanRefused:
            raise
        except Exception as exc:
            _log.exception("a step failed")
            if plan is None:
                return None
            return StepResult(
                step_id=self.num_steps,
                plan_id=plan.plan_id,
                failed_rows=self._rows_of(plan),
                failure=f"{type(exc).__name__}: {exc}",
                started_unix_ns=started_unix_ns,
                step_ns=time.perf_counter_ns() - started_ns,
            )
        finally:
            self.is_stepping = False

    def _rows_of(self, plan: StepPlan) -> list[int]:
        """Every row that the step may have been for, taken in by the engine or not."""
        admitted = (admission.row for admission in plan.admissions)
        return sorted({*self._engine.live_rows, *admitted})
