"""The four kinds of prompt of POST /v1/completions."""

from __future__ import annotations

from typing import Any

from millrace.core.errors import InvalidRequest
from millrace.core.request_fields.field import Kind

from .fields import integers, is_integer, texts, wrong_value

FIELD = "prompt"


def read_prompts(prompt: Any, max_prompts: int) -> dict[str, dict[str, Any]]:
    """Each prompt as `GenerationRequest` takes it, under the name that errors give it.

    The first entry of a list says what all are. Raises `InvalidRequest` naming the entry.
    """
    if isinstance(prompt, str):
        return {FIELD: {"text": prompt}}
    if not isinstance(prompt, list):
        raise wrong_value(FIELD, prompt, Kind.PROMPT)
    if not prompt or is_integer(prompt[0]):
        return {FIELD: {"token_ids": integers(FIELD, prompt)}}
    if len(prompt) > max_prompts:
        raise InvalidRequest(
            f"{FIELD} has {len(prompt)} entries; the limit is {max_prompts}", field=FIELD
        )
    if isinstance(prompt[0], str):
        return {_name(i, prompt): {"text": each} for i, each in enumerate(texts(FIELD, prompt))}
    return {_name(i, prompt): {"token_ids": _ids(i, each)} for i, each in enumerate(prompt)}


def _name(index: int, prompts: list[Any]) -> str:
    return FIELD if len(prompts) == 1 else f"{FIELD}[{index}]"


def _ids(index: int, each: Any) -> tuple[int, ...]:
    name = f"{FIELD}[{index}]"
    if not isinstance(each, list):
        allowed = "a list of token ids" if index else "a text, a token id or a list of token ids"
        raise wrong_value(name, each, allowed, FIELD)
    return integers(name, each, FIELD)
