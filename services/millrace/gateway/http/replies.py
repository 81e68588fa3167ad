"""Parts that the OpenAI replies have in common."""

from __future__ import annotations

from typing import Any

from millrace.core.errors import Aborted
from millrace.core.request_fields.field import camel_case
from millrace.core.sampling import SamplingDefaults
from millrace.core.tokens import FinishReason
from millrace.gateway.events import PositionLogprobs, Started, TokenLogprob, Usage

# JSON has no infinity; the OpenAI API shows the unlikeliest tokens so.
MIN_LOGPROB = -9999.0


def finish_reason_text(reason: FinishReason) -> str:
    """`stop` or `length`. Raises `Aborted` for an answer that somebody ended: it is no answer."""
    if reason is FinishReason.ABORT:
        raise Aborted("the request was aborted")
    return reason.name.lower()


def fingerprint(started: Started) -> str:
    """`system_fingerprint`: the same while the same weights answer."""
    return f"fp_{started.revision[:12]}"


def extension(started: Started) -> dict[str, Any]:
    """What a reply says beyond the OpenAI API: the sampling in force, and whether it was cached."""
    return {
        "seed": started.seed,
        "cached": started.is_cached,
        "sampling": started.sampling.given(),
    }


def camel_cased(sampling: SamplingDefaults) -> dict[str, float]:
    """Sampling in force as the plain routes spell it."""
    return {camel_case(name): value for name, value in sampling.filled().given().items()}


def usage_body(usage: Usage) -> dict[str, Any]:
    """The `usage` object."""
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_output_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }


def chat_logprobs(positions: list[PositionLogprobs]) -> dict[str, Any]:
    """The `logprobs` object of a chat choice."""
    return {
        "content": [
            {
                **_token(position.chosen),
                "top_logprobs": [_token(entry) for entry in position.top],
            }
            for position in positions
        ],
        "refusal": None,
    }


def _token(entry: TokenLogprob) -> dict[str, Any]:
    return {
        "token": entry.text,
        "logprob": shown_logprob(entry.logprob),
        "bytes": list(entry.raw),
    }


def shown_logprob(logprob: float) -> float:
    """As JSON can have it: an impossible token as the least number that is shown."""
    return max(logprob, MIN_LOGPROB)
