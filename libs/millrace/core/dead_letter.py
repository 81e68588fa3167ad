"""What is kept of a request that was given up: enough to find it again, nothing of its text."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from .request import QueuedRequest

HASH_BYTES = 16
# The reason of a record whose message nobody could answer.
UNREADABLE = "UNREADABLE"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that ended workers or failed their steps, alone in the end; or an unreadable one.

    `prompt_hash` is BLAKE2b-128 over the prompt's little-endian uint32 token ids; `cause` names
    the kind of fault, never a message that could quote the prompt. Of an unreadable message there
    are its `subject`, the hash of its payload and its size instead, and `request_id` is only what
    its header says.
    """

    request_id: str
    model: str
    prompt_hash: bytes
    num_prompt_tokens: int
    reason: str
    cause: str
    num_attempts: int
    subject: str = ""
    payload_hash: bytes = b""
    num_payload_bytes: int = 0

    @classmethod
    def of_payload(
        cls,
        payload: bytes,
        *,
        request_id: str,
        model: str,
        subject: str,
        cause: str,
        num_attempts: int,
    ) -> DeadLetter:
        """The record of a message that cannot be read."""
        return cls(
            request_id=request_id,
            model=model,
            prompt_hash=b"",
            num_prompt_tokens=0,
            reason=UNREADABLE,
            cause=cause,
            num_attempts=num_attempts,
            subject=subject,
            payload_hash=hashlib.blake2b(payload, digest_size=HASH_BYTES).digest(),
            num_payload_bytes=len(payload),
        )

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
