"""What is kept of a request that was given up: enough to find it again, nothing of its text."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from .request import QueuedRequest

HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that ended workers or failed their steps, alone in the end.

    `prompt_hash` is BLAKE2b-128 over the prompt's little-endian uint32 token ids; `cause` names
    the kind of fault, never a message that could quote the prompt.
    """

    request_id: str
    model: str
    prompt_hash: bytes
    num_prompt_tokens: int
    reason: str
    cause: str
    num_attempts: int

    @classmethod
    def of(
        cls, request: QueuedRequest, *, reason: str, cause: str, num_attempts: int
    ) -> DeadLetter:
        """The record of `request`."""
        token_ids = request.prompt_token_ids
        packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
        return cls(
            request_id=request.request_id,
            model=request.model,
            prompt_hash=hashlib.blake2b(packed, digest_size=HASH_BYTES).digest(),
            num_prompt_tokens=len(token_ids),
            reason=reason,
            cause=cause,
            num_attempts=num_attempts,
        )
