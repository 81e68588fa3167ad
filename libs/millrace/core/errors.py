"""Every error a caller of Millrace can meet.

MillraceError
├── InvalidRequest              the request itself is wrong; repeating it cannot help
│   ├── ContextLengthExceeded   prompt or prompt + max_tokens over the model's context
│   └── PayloadTooLarge         more bytes than one message may have
├── UnknownModel                no such model here
├── Unsupported                 a known feature that this server or model does not have
├── UnsupportedModel            a checkpoint that cannot be loaded, with the reason
├── Conflict                    the same idempotency key with another body, or a request id in use
├── RequestNotFound             no such request
├── Overloaded                  the queue is full; come back after `retry_after_s`
│   └── OutOfStorage            the disk below the queue is full
├── Unavailable                 a part of the stack is not there now
├── DeadlineExceeded            the request's own time is over
├── Aborted                     somebody ended the request
├── ConfigError                 a setting is wrong; the service does not start
└── InternalError               a defect of ours
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

# `metadata` key under which an error carries a more exact code than its class.
CODE_KEY = "code"


class MillraceError(Exception):
    """Base of the tree.

    `reason` is stable and crosses every wire; `field` names the offending part of the request;
    `metadata` carries the numbers that the message mentions.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_s = retry_after_s


class InvalidRequest(MillraceError):
    """The request itself is wrong; repeating it cannot help."""

    reason = "INVALID_REQUEST"


class ContextLengthExceeded(InvalidRequest):
    """Prompt, or prompt and max_tokens together, over the model's context."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class PayloadTooLarge(InvalidRequest):
    """More bytes than one message may have."""

    reason = "PAYLOAD_TOO_LARGE"


class UnknownModel(MillraceError):
    """No such model here."""

    reason = "MODEL_NOT_FOUND"


class Unsupported(MillraceError):
    """A known feature that this server or model does not have."""

    reason = "UNSUPPORTED"


class UnsupportedModel(MillraceError):
    """A checkpoint that cannot be loaded, with the reason."""

    reason = "UNSUPPORTED_MODEL"


class Conflict(MillraceError):
    """The same idempotency key with another body, or a request id in use."""

    reason = "CONFLICT"


class RequestNotFound(MillraceError):
    """No such request."""

    reason = "REQUEST_NOT_FOUND"


class Overloaded(MillraceError):
    """The queue is full; come back after `retry_after_s`."""

    reason = "OVERLOADED"


class OutOfStorage(Overloaded):
    """The disk below the queue is full, which waiting alone may not cure."""

    reason = "OUT_OF_STORAGE"


class Unavailable(MillraceError):
    """A part of the stack is not there now."""

    reason = "UNAVAILABLE"


class DeadlineExceeded(MillraceError):
    """The request's own time is over."""

    reason = "DEADLINE_EXCEEDED"


class Aborted(MillraceError):
    """Somebody ended the request."""

    reason = "ABORTED"


class ConfigError(MillraceError):
    """A setting is wrong; the service does not start."""

    reason = "CONFIG_ERROR"


class InternalError(MillraceError):
    """A defect of ours."""

    reason = "INTERNAL"


def error_classes() -> dict[str, type[MillraceError]]:
    """Reason → class, over the tree as drawn here; what others derive travels as its parent."""
    found: dict[str, type[MillraceError]] = {}
    pending: list[type[MillraceError]] = [MillraceError]
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        if cls is not MillraceError and cls.__module__ == __name__:
            found[cls.reason] = cls
    return found
