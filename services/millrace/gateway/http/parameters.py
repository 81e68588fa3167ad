"""The fields that every generating route shares, as sampling parameters and request options."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from millrace.core.errors import InvalidRequest
from millrace.core.request import Priority
from millrace.core.request_fields.our_sampling import SAMPLING
from millrace.core.sampling import SamplingParams
from millrace.gateway.generation import CacheMode

from .reading import Given

IDEMPOTENCY_HEADER = "idempotency-key"
_SAMPLING_NAMES = frozenset(known.name for known in SAMPLING)


def sampling_params(given: Given) -> SamplingParams:
    """What the request says of sampling."""
    values = {name: value for name, value in given.values.items() if name in _SAMPLING_NAMES}
    return SamplingParams(**values, names=given.names)


def request_options(given: Given) -> dict[str, Any]:
    """Model, priority, deadline, cache mode and key, as `GenerationRequest` takes them."""
    priority, cache = given.get("priority"), given.get("cache")
    return {
        "model": given.get("model", ""),
        "priority": Priority[priority.upper()] if priority else Priority.NORMAL,
        "timeout_ms": given.get("timeout_ms"),
        "cache": CacheMode(cache) if cache else CacheMode.BYPASS,
        "idempotency_key": given.get("idempotency_key"),
        "is_streamed": given.get("stream", False),
    }


def with_header_key(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """The body with the idempotency key of the header in it; given twice, both must agree."""
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key is None:
        return body
    if body.get("idempotency_key") not in (None, key):
        raise InvalidRequest(
            f"{IDEMPOTENCY_HEADER} and idempotency_key differ; give one of them",
            field="idempotency_key",
        )
    return {**body, "idempotency_key": key}


def refuse_header_key(request: Request) -> None:
    """Raises `InvalidRequest` where one key is given for many requests."""
    if IDEMPOTENCY_HEADER in request.headers:
        raise InvalidRequest(
            f"{IDEMPOTENCY_HEADER} stands for one request; give each entry its own idempotency_key",
            field="idempotency_key",
        )
