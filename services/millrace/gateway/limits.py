"""What a model allows, as pure checks; every refusal names field, value and limit."""

from __future__ import annotations

from collections.abc import Iterable

from millrace.core.errors import ContextLengthExceeded, InvalidRequest
from millrace.core.model import ModelInfo
from millrace.core.sampling import SamplingParams

from .generation import GenerationRequest


def check_token_ids(request: GenerationRequest, info: ModelInfo) -> None:
    """Raises `InvalidRequest` where the request names a token id that the model does not have.

    `ContextLengthExceeded` comes first: a million ids need not be looked at one by one.
    """
    if len(request.token_ids or ()) >= info.max_model_len:
        resolve_max_tokens(request.sampling, len(request.token_ids or ()), info)
    _check_ids("prompt", request.token_ids or (), info)
    _check_ids("logit_bias", (token_id for token_id, _ in request.sampling.logit_bias), info)
    _check_ids("stop_token_ids", request.sampling.stop_token_ids, info)


def resolve_max_tokens(sampling: SamplingParams, num_prompt_tokens: int, info: ModelInfo) -> int:
    """Most output tokens: as asked, or what is left of the context.

    Raises `ContextLengthExceeded` where the prompt leaves no room, or less than was asked for.
    """
    left = info.max_model_len - num_prompt_tokens
    if left < 1:
        raise _too_long(
            f"the prompt has {num_prompt_tokens} tokens; {info.name} holds {info.max_model_len}, "
            "prompt and at least one output token together",
            sampling.max_tokens or 1,
            num_prompt_tokens,
            info,
        )
    if sampling.max_tokens is not None and sampling.max_tokens > left:
        raise _too_long(
            f"the prompt has {num_prompt_tokens} tokens and max_tokens is {sampling.max_tokens}, "
            f"together {num_prompt_tokens + sampling.max_tokens}; {info.name} holds "
            f"{info.max_model_len}",
            sampling.max_tokens,
            num_prompt_tokens,
            info,
        )
    max_tokens = left if sampling.max_tokens is None else sampling.max_tokens
    if sampling.min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {sampling.min_tokens}; after a prompt of {num_prompt_tokens} tokens "
            f"at most {max_tokens} can be generated",
            field="min_tokens",
            metadata={"value": str(sampling.min_tokens), "max": str(max_tokens)},
        )
    return max_tokens


def stop_ids(sampling: SamplingParams, info: ModelInfo) -> tuple[int, ...]:
    """Token ids that end the output: the model's own unless ignored, and the given ones."""
    own = () if sampling.ignore_eos else info.eos_token_ids
    return tuple(dict.fromkeys((*own, *sampling.stop_token_ids)))


def _check_ids(field: str, token_ids: Iterable[int], info: ModelInfo) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < info.vocab_size:
            raise InvalidRequest(
                f"{field} holds the token id {token_id}; {info.name} has the ids 0 to "
                f"{info.vocab_size - 1}",
                field=field,
                metadata={"value": str(token_id), "max": str(info.vocab_size - 1)},
            )


def _too_long(
    message: str, max_tokens: int, num_prompt_tokens: int, info: ModelInfo
) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        message,
        field="max_tokens" if num_prompt_tokens < info.max_model_len else "prompt",
        metadata={
            "num_prompt_tokens": str(num_prompt_tokens),
            "max_tokens": str(max_tokens),
            "max_model_len": str(info.max_model_len),
        },
    )
