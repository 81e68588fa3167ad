"""The client's errors as ours, and the cancellations that it loses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import nats.errors
import nats.js.errors

from millrace.core.errors import MillraceError, Overloaded, PayloadTooLarge, Unavailable

# JetStream: maximum messages, messages per subject, or bytes exceeded.
QUEUE_FULL_CODES = frozenset({10047, 10054, 10077})


@contextmanager
def answering() -> Iterator[None]:
    """Around a call that the server answers; raises `Unavailable` where it does not."""
    try:
        yield
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise_if_cancelled()
        raise Unavailable(f"the message bus does not answer: {type(exc).__name__}") from exc
    raise_if_cancelled()


def raise_if_cancelled() -> None:
    """Raises the cancellation that a call to the client may have lost.

    It waits by `asyncio.wait_for`, which loses a cancellation that meets the answer. So it is with
    Python 3.11; a loop around such a call would then never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def publish_error(exc: Exception) -> MillraceError:
    """Why a request was not taken in; raises what is no error of the bus."""
    if isinstance(exc, nats.js.errors.APIError) and exc.err_code in QUEUE_FULL_CODES:
        return Overloaded("the intake queue is full", retry_after_s=1.0)
    if isinstance(exc, nats.errors.MaxPayloadError):
        return PayloadTooLarge("the request is larger than the message bus takes")
    if isinstance(exc, (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError)):
        return Unavailable(
            f"the intake queue does not answer: {type(exc).__name__}", retry_after_s=1.0
        )
    raise exc
