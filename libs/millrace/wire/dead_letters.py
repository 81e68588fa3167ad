"""Dead letters to protobuf and back."""

from __future__ import annotations

from millrace.core.dead_letter import DeadLetter
from millrace.internal.v1 import bus_pb2


def dead_letter_to_proto(letter: DeadLetter) -> bus_pb2.DeadLetter:
    """Of a request or a message that was given up."""
    return bus_pb2.DeadLetter(
        request_id=letter.request_id,
        model=letter.model,
        prompt_hash=letter.prompt_hash,
        num_prompt_tokens=letter.num_prompt_tokens,
        reason=letter.reason,
        cause=letter.cause,
        num_attempts=letter.num_attempts,
        subject=letter.subject,
        payload_hash=letter.payload_hash,
        num_payload_bytes=letter.num_payload_bytes,
    )


def dead_letter_from_proto(message: bus_pb2.DeadLetter) -> DeadLetter:
    """Of a request or a message that was given up."""
    return DeadLetter(
        request_id=message.request_id,
        model=message.model,
        prompt_hash=message.prompt_hash,
        num_prompt_tokens=message.num_prompt_tokens,
        reason=message.reason,
        cause=message.cause,
        num_attempts=message.num_attempts,
        subject=message.subject,
        payload_hash=message.payload_hash,
        num_payload_bytes=message.num_payload_bytes,
    )
