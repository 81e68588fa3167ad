"""Errors on the wire: one table from the error tree to gRPC and HTTP codes, and the way back.

The rich status follows google.rpc: `ErrorInfo` carries the stable reason and the numbers,
`BadRequest` the offending field, `RetryInfo` when to come back.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from millrace.core.errors import (
    Aborted,
    ConfigError,
    Conflict,
    ContextLengthExceeded,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MillraceError,
    OutOfStorage,
    Overloaded,
    PayloadTooLarge,
    RequestNotFound,
    Unavailable,
    UnknownModel,
    Unsupported,
    UnsupportedModel,
    error_classes,
)

_log = logging.getLogger(__name__)

ERROR_DOMAIN = "millrace"


@dataclass(frozen=True, slots=True)
class Codes:
    """How one error class shows on the two edges."""

    grpc: grpc.StatusCode
    http: int


CODES: dict[type[MillraceError], Codes] = {
    InvalidRequest: Codes(grpc.StatusCode.INVALID_ARGUMENT, 400),
    ContextLengthExceeded: Codes(grpc.StatusCode.INVALID_ARGUMENT, 400),
    PayloadTooLarge: Codes(grpc.StatusCode.RESOURCE_EXHAUSTED, 413),
    UnknownModel: Codes(grpc.StatusCode.NOT_FOUND, 404),
    Unsupported: Codes(grpc.StatusCode.UNIMPLEMENTED, 501),
    UnsupportedModel: Codes(grpc.StatusCode.FAILED_PRECONDITION, 422),
    Conflict: Codes(grpc.StatusCode.ALREADY_EXISTS, 409),
    RequestNotFound: Codes(grpc.StatusCode.NOT_FOUND, 404),
    Overloaded: Codes(grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    OutOfStorage: Codes(grpc.StatusCode.RESOURCE_EXHAUSTED, 507),
    Unavailable: Codes(grpc.StatusCode.UNAVAILABLE, 503),
    DeadlineExceeded: Codes(grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    Aborted: Codes(grpc.StatusCode.CANCELLED, 499),
    ConfigError: Codes(grpc.StatusCode.FAILED_PRECONDITION, 500),
    InternalError: Codes(grpc.StatusCode.INTERNAL, 500),
}

_CLASS_BY_CODE: dict[grpc.StatusCode, type[MillraceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: RequestNotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Aborted,
}

_HAPPENED: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "does not answer",
    grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer in time",
    grpc.StatusCode.CANCELLED: "broke the call off",
    grpc.StatusCode.UNIMPLEMENTED: "does not know this call",
}


def codes_of(error: MillraceError) -> Codes:
    """The codes of the nearest class in the table."""
    for cls in type(error).__mro__:
        if cls in CODES:
            return CODES[cls]
    return CODES[InternalError]


def status_of(error: MillraceError) -> grpc.StatusCode:
    """The gRPC status code of an error."""
    return codes_of(error).grpc


def http_status_of(error: MillraceError) -> int:
    """The HTTP status code of an error."""
    return codes_of(error).http


def status_number(error: MillraceError) -> int:
    """The number of the gRPC status code, as it travels inside messages."""
    number: int = status_of(error).value[0]
    return number


def to_rich_status(error: MillraceError) -> status_pb2.Status:
    """The google.rpc.Status of an error, details included."""
    details: list[any_pb2.Any] = [
        _packed(
            error_details_pb2.ErrorInfo(
                reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata
            )
        )
    ]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=status_number(error), message=error.message, details=details)


def to_grpc_status(error: MillraceError) -> grpc.Status:
    """What `context.abort_with_status` takes."""
    return rpc_status.to_status(to_rich_status(error))


def error_from_rpc(exc: grpc.aio.AioRpcError, peer: str = "the server") -> MillraceError:
    """The error that a peer raised, or what became of the call to it.

    What gRPC itself says of a call names addresses. That is for the log: the error may be shown to
    clients, who are told `peer` and the kind of failure.
    """
    rich = rpc_status.from_call(exc)  # type: ignore[arg-type]
    if rich is not None:
        return error_from_rich_status(rich)
    _log.info("%s: %s: %s", peer, exc.code().name, exc.details())
    happened = _HAPPENED.get(exc.code(), f"ended the call with {exc.code().name}")
    return _CLASS_BY_CODE.get(exc.code(), InternalError)(f"{peer} {happened}")


def error_from_rich_status(rich: status_pb2.Status) -> MillraceError:
    """The error behind a google.rpc.Status."""
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in rich.details:
        for message in (info, request, retry):
            detail.Unpack(message)
    violations = request.field_violations
    has_retry = retry.HasField("retry_delay")
    return error_from_reason(
        info.reason,
        rich.message,
        field=violations[0].field if violations else None,
        metadata=dict(info.metadata),
        retry_after_s=retry.retry_delay.ToMilliseconds() / 1000 if has_retry else None,
    )


def error_from_reason(
    reason: str,
    message: str,
    *,
    field: str | None = None,
    metadata: dict[str, str] | None = None,
    retry_after_s: float | None = None,
) -> MillraceError:
    """An error by its stable reason; `InternalError` where this version does not know it."""
    cls = error_classes().get(reason, InternalError)
    return cls(message, field=field, metadata=metadata, retry_after_s=retry_after_s)


def _packed(
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
