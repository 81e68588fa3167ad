"""How a service process runs until its end, and what it says where it cannot go on."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from traceback import format_exception
from types import TracebackType
from typing import Any

from millrace.core.errors import ConfigError, MillraceError
from millrace.core.secret import redacted
from millrace.telemetry.log_line import JSON, log_format, log_line


@contextmanager
def exit_on_error(service: str) -> Iterator[None]:
    """Ends the process with one line on stderr and code 1 where a `MillraceError` comes out.

    Those of task groups count as well. Anything else is a defect and keeps its traceback, without
    the passwords that a library may have put into it.
    """
    sys.excepthook = _show_defect
    try:
        yield
    except MillraceError as error:
        raise SystemExit(_line(service, error)) from None
    except BaseExceptionGroup as group:
        errors, defects = group.split(MillraceError)
        if errors is None or defects is not None:
            raise
        raise SystemExit(_line(service, _first_leaf(errors))) from None


def tell_ready(service: str, address: str) -> None:
    """Prints the line that supervisors wait for, and settles down.

    What there is by now stays. The garbage collector need not look at it ever again: for modules
    alone that takes 15 to 85 ms each time, in which nothing else runs.
    """
    gc.collect()
    gc.freeze()
    print(log_line(service, f"ready {service} {address}"), flush=True)


async def run_until_first(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Runs them side by side until one has ended; cancels the others and raises what it raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _line(service: str, error: BaseException) -> str:
    message = redacted(" ".join(str(error).split()))
    if _is_json():
        return log_line(service, message, "ERROR")
    return f"millrace {service}: {message}"


def _is_json() -> bool:
    try:
        return log_format() == JSON
    except ConfigError:
        # What is to be told, most likely.
        return False


def _show_defect(
    kind: type[BaseException], error: BaseException, place: TracebackType | None
) -> None:
    sys.stderr.write(redacted("".join(format_exception(kind, error, place))))


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
