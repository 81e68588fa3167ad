"""The client's errors as ours, and the cancellations that it loses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import nats.errors
import nats.js.errors

from millrace.core.errors import (
    MillraceError,
    OutOfStorage,
    Overloaded,
    PayloadTooLarge,
    Unavailable,
)
from millrace.core.secret import redacted
from millrace.core.url import NatsUrl

# JetStream: the stream could not store the message; its description says why.
STORE_FAILED_CODE = 10077
# Maximum messages, messages per subject, or bytes exceeded.
FULL_PREFIX = "maximum "
# Storage, memory or resources of the server or the account exceeded.
NO_ROOM_CODES = frozenset({10023, 10028, 10047})
MESSAGE_TOO_LARGE_CODE = 10054
# What a file system says that takes no more.
DISK_FULL_WORDS = ("no space left on device", "disk quota exceeded", "file too large")
FULL_RETRY_AFTER_S = 1.0
# Somebody has to make room.
STORAGE_RETRY_AFTER_S = 10.0


@contextmanager
def answering() -> Iterator[None]:
    """Around a call that the server answers; raises `Unavailable` where it does not."""
    try:
        yield
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise_if_cancelled()
        raise Unavailable(f"the message bus does not answer: {type(exc).__name__}") from exc
    raise_if_cancelled()


def connect_failure(url: NatsUrl, exc: BaseException) -> str:
    """Why there is no connection to `url`, in our words; the library's only if they are safe."""
    if isinstance(exc, nats.errors.Error) and "authorization" in str(exc).lower():
        return f"the NATS server at {url} {_refused_credentials(url)}"
    # Some errors of asyncio and of the library have no words.
    return f"no NATS server answers at {url}: {redacted(str(exc)) or type(exc).__name__}"


def _refused_credentials(url: NatsUrl) -> str:
    if url.username is None:
        return "wants a user or a token; name them in its URL"
    if url.password is None:
        return "refused the token"
    return "refused the user or the password"


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
    if isinstance(exc, nats.js.errors.APIError):
        return _refusal(exc)
    if isinstance(exc, nats.errors.MaxPayloadError):
        return PayloadTooLarge("the request is larger than the message bus takes")
    if isinstance(exc, nats.js.errors.NoStreamResponseError):
        return Unavailable(
            "no stream takes requests in: the NATS server has lost its data; "
            "run `millrace bus init`",
            retry_after_s=FULL_RETRY_AFTER_S,
        )
    if isinstance(exc, (nats.errors.Error, TimeoutError, OSError)):
        return Unavailable(
            f"the intake queue does not answer: {type(exc).__name__}",
            retry_after_s=FULL_RETRY_AFTER_S,
        )
    raise exc


def store_error(exc: nats.js.errors.APIError) -> OutOfStorage | None:
    """The full disk that a refusal tells of; None where it tells of something else."""
    description = exc.description or ""
    words = next((words for words in DISK_FULL_WORDS if words in description), None)
    if words is None and exc.err_code not in NO_ROOM_CODES:
        return None
    return OutOfStorage(
        f"the intake queue has no storage left: {words or description}",
        retry_after_s=STORAGE_RETRY_AFTER_S,
    )


def _refusal(exc: nats.js.errors.APIError) -> MillraceError:
    description = exc.description or ""
    if (error := store_error(exc)) is not None:
        return error
    if exc.err_code == STORE_FAILED_CODE and description.startswith(FULL_PREFIX):
        return Overloaded(
            f"the intake queue is full: {description}", retry_after_s=FULL_RETRY_AFTER_S
        )
    if exc.err_code == MESSAGE_TOO_LARGE_CODE:
        return PayloadTooLarge("the request is larger than the intake queue takes")
    return Unavailable(f"the intake queue refuses: {description}", retry_after_s=FULL_RETRY_AFTER_S)
