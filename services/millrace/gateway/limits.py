"""What a model allows, as pure checks; every refusal names field, value and limit."""

from __future__ import annotations

from collections.abc import Sequence

from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import ContextLengthExceeded, InvalidRequest
from millrace.core.model import ModelInfo
from millrace.core.sampling import SamplingParams

from .generation import GenerationRequest

MAX_SHOWN_DIGITS = 20


def check_token_ids(request: GenerationRequest, info: ModelInfo) -> None:
    """Raises `InvalidRequest` where the request names a token id that the model does not have.

    `ContextLengthExceeded` comes first: a million ids need not be looked at one by one.
    """
    names, sampling = request.names, request.sampling
    if len(request.token_ids or ()) >= info.max_model_len:
        resolve_max_tokens(request, len(request.token_ids or ()), info)
    _check_ids(names["prompt"], request.token_ids or (), info)
    _check_ids(names["stop_token_ids"], sampling.stop_token_ids, info)
    for token_id, _ in sampling.logit_bias:
        if not 0 <= token_id < info.vocab_size:
            name = names["logit_bias"]
            raise _no_such_id(f"{name} has the key {token_id}", name, token_id, info)


def check_encoded(encoded: EncodedPrompt, name: str, info: ModelInfo) -> None:
    """Raises `InvalidRequest` if the field encodes to nothing, or to an id that the model lacks:
    the tokenizer's files are not the model's."""
    if not encoded.num_tokens:
        raise InvalidRequest(f"{name} has no tokens", field=name)
    token_id = max(encoded.token_ids or [0])
    if token_id >= info.vocab_size:
        raise _no_such_id(f"{name} encodes to the token id {token_id}", name, token_id, info)


def resolve_max_tokens(request: GenerationRequest, num_prompt_tokens: int, info: ModelInfo) -> int:
    """Most output tokens: as asked, or what the route gives, or what is left of the context.

    Raises `ContextLengthExceeded` where the prompt leaves no room, or less than was asked for.
    """
    left, asked = info.max_model_len - num_prompt_tokens, request.sampling.max_tokens
    if left < 1:
        raise _too_long(
            f"{request.prompt_field} has {_tokens(num_prompt_tokens)}; {info.name} holds "
            f"{info.max_model_len}, prompt and at least one output token together",
            request.prompt_field,
            asked or 1,
            num_prompt_tokens,
            info,
        )
    name = request.names["max_tokens"]
    if asked is not None and asked > left:
        raise _too_long(
            f"{request.prompt_field} has {_tokens(num_prompt_tokens)} and {name} is {asked}, "
            f"together {num_prompt_tokens + asked}; {info.name} holds {info.max_model_len}",
            name,
            asked,
            num_prompt_tokens,
            info,
        )
    max_tokens = min(left, request.default_max_tokens or left) if asked is None else asked
    _check_min_tokens(request, max_tokens, left)
    return max_tokens


def stop_ids(sampling: SamplingParams, info: ModelInfo) -> tuple[int, ...]:
    """Token ids that end the output: the model's own unless ignored, and the given ones."""
    own = () if sampling.ignore_eos else info.eos_token_ids
    return tuple(dict.fromkeys((*own, *sampling.stop_token_ids)))


def _check_min_tokens(request: GenerationRequest, max_tokens: int, left: int) -> None:
    min_tokens, name = request.sampling.min_tokens, request.names["min_tokens"]
    if min_tokens > max_tokens:
        # Without a max_tokens of its own the request meets the route's, or the end of the context.
        limit = (
            f"{request.names['max_tokens']} is {max_tokens} if left out"
            if max_tokens < left
            else f"{request.prompt_field} leaves room for {max_tokens}"
        )
        raise InvalidRequest(
            f"{name} is {min_tokens}; {limit}",
            field=name,
            metadata={"value": str(min_tokens), "max": str(max_tokens)},
        )


def _check_ids(name: str, token_ids: Sequence[int], info: ModelInfo) -> None:
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < info.vocab_size):
        return
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < info.vocab_size:
            raise _no_such_id(f"{name}[{index}] is {_shown(token_id)}", name, token_id, info)


def _no_such_id(said: str, name: str, token_id: int, info: ModelInfo) -> InvalidRequest:
    return InvalidRequest(
        f"{said}; {info.name} has the token ids 0 to {info.vocab_size - 1}",
        field=name,
        metadata={"value": _shown(token_id), "max": str(info.vocab_size - 1)},
    )


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _shown(token_id: int) -> str:
    shown = str(token_id)
    return shown if len(shown) <= MAX_SHOWN_DIGITS else f"{shown[:MAX_SHOWN_DIGITS]}..."


def _too_long(
    message: str, field: str, max_tokens: int, num_prompt_tokens: int, info: ModelInfo
) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        message,
        field=field,
        metadata={
            "num_prompt_tokens": str(num_prompt_tokens),
            "max_tokens": str(max_tokens),
            "max_model_len": str(info.max_model_len),
        },
    )
