"""The fields that every generating route shares, as sampling parameters and request options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from millrace.core.errors import InvalidRequest
from millrace.core.request import Priority
from millrace.core.sampling import SamplingParams
from millrace.gateway.generation import CacheMode

from .fields import Fields, is_number

IDEMPOTENCY_HEADER = "idempotency-key"
SAMPLING_FIELDS = frozenset(
    {"max_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "logit_bias"}
    | {"presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty"}
    | {"min_tokens", "ignore_eos", "stop_token_ids"}
)
OPTION_FIELDS = frozenset({"cache", "priority", "timeout_ms", "idempotency_key"})
# Accepted, without effect here.
IGNORED_FIELDS = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
    | {"prompt_cache_retention", "prompt_cache_options", "moderation", "verbosity", "prediction"}
    | {"reasoning_effort", "parallel_tool_calls"}
)
# Fields of other servers that change the answer.
UNSUPPORTED_EVERYWHERE: Mapping[str, str] = {
    "guided_json": "constrained output",
    "guided_regex": "constrained output",
    "guided_choice": "constrained output",
    "guided_grammar": "constrained output",
    "structured_outputs": "constrained output",
    "use_beam_search": "beam search",
    "prompt_logprobs": "log-probabilities of the prompt",
    "include_stop_str_in_output": "keeping the stop string",
    "truncate_prompt_tokens": "truncation of the prompt",
    "lora_adapter": "adapters",
}


def sampling_params(
    fields: Fields, *, max_tokens: int | None, top_logprobs: int | None, names: Mapping[str, str]
) -> SamplingParams:
    """Sampling parameters; `names` maps our names to those of the route, for its errors."""
    given = {
        "min_tokens": fields.integer("min_tokens"),
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.integer("top_k"),
        "min_p": fields.number("min_p"),
        "repetition_penalty": fields.number("repetition_penalty"),
        "presence_penalty": fields.number("presence_penalty"),
        "frequency_penalty": fields.number("frequency_penalty"),
        "logit_bias": _logit_bias(fields),
        "stop": fields.strings("stop"),
        "stop_token_ids": fields.integers("stop_token_ids"),
        "ignore_eos": fields.flag("ignore_eos"),
        "num_choices": fields.integer("n"),
    }
    resolved: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            seed=fields.integer("seed"),
            top_logprobs=top_logprobs,
            **resolved,
        )
    except InvalidRequest as error:
        raise _renamed(error, {"num_choices": "n", **names}) from error


def request_options(fields: Fields) -> dict[str, Any]:
    """Priority, deadline and cache mode, as `GenerationRequest` takes them."""
    priority = fields.choice("priority", [each.subject_token for each in Priority])
    cache = fields.choice("cache", [each.value for each in CacheMode])
    return {
        "priority": Priority[priority.upper()] if priority else Priority.NORMAL,
        "timeout_ms": fields.integer("timeout_ms"),
        "cache": CacheMode(cache) if cache else CacheMode.BYPASS,
        "idempotency_key": fields.text("idempotency_key"),
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


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...] | None:
    entries = fields.object("logit_bias")
    if entries is None:
        return None
    pairs = []
    for key, value in entries.values.items():
        if not is_number(value):
            raise entries.refuse(key, "a number")
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidRequest(
                f"logit_bias has the key {key[:32]!r}; keys are token ids", field="logit_bias"
            )
        pairs.append((int(key), float(value)))
    return tuple(pairs)


def _renamed(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    field = error.field or ""
    if field not in names:
        return error
    return InvalidRequest(
        error.message.replace(field, names[field], 1),
        field=names[field],
        metadata=error.metadata,
    )
