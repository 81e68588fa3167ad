"""The tokenizer's ids against the model's: the two come from different files."""

from __future__ import annotations

from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import InvalidRequest
from millrace.core.model import ModelInfo


def check_encoded(encoded: EncodedPrompt, field: str, info: ModelInfo) -> None:
    """Raises `InvalidRequest` if `field` encodes to nothing, or to an id that the model lacks."""
    if not encoded.num_tokens:
        raise InvalidRequest(f"{field} has no tokens", field=field)
    token_ids = encoded.token_ids
    if not token_ids or max(token_ids) < info.vocab_size:
        return
    token_id = next(number for number in token_ids if number >= info.vocab_size)
    raise InvalidRequest(
        f"{field} encodes to the token id {token_id}; {info.name} has the ids 0 to "
        f"{info.vocab_size - 1}",
        field=field,
        metadata={"value": str(token_id), "max": str(info.vocab_size - 1)},
    )
