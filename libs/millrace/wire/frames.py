"""Token frames to protobuf and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from millrace.core.tokens import (
    Failed,
    FinishReason,
    Scheduled,
    TokenDelta,
    TokenFrame,
    TokenLogprobs,
)
from millrace.internal.v1 import scheduler_pb2

from .logprobs import pack_logprobs, unpack_logprobs


def token_frame_to_proto(frame: TokenFrame) -> scheduler_pb2.TokenFrame:
    """Of what one step has for one gateway."""
    deltas = frame.deltas
    return scheduler_pb2.TokenFrame(
        attempt=frame.attempt,
        request_ids=[bytes.fromhex(delta.request_id) for delta in deltas],
        choices=[delta.choice for delta in deltas],
        start_index=[delta.start_index for delta in deltas],
        num_tokens=[len(delta.token_ids) for delta in deltas],
        finish=[delta.finish for delta in deltas],
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=pack_logprobs(_logprobs_of_tokens(deltas)),
        scheduled=[
            scheduler_pb2.Scheduled(
                request_id=scheduled.request_id,
                scheduled_unix_ns=scheduled.scheduled_unix_ns,
                num_cached_tokens=scheduled.num_cached_tokens,
            )
            for scheduled in frame.scheduled
        ],
        failed=[
            scheduler_pb2.Failed(
                request_id=failed.request_id,
                code=failed.code,
                reason=failed.reason,
                message=failed.message,
            )
            for failed in frame.failed
        ],
    )


def token_frame_from_proto(message: scheduler_pb2.TokenFrame) -> TokenFrame:
    """Of what one step has for one gateway."""
    logprobs = unpack_logprobs(message.logprobs)
    frame = TokenFrame(attempt=message.attempt)
    columns = zip(
        message.request_ids,
        message.choices,
        message.start_index,
        message.num_tokens,
        message.finish,
        strict=True,
    )
    token_ids = list(message.token_ids)
    begin = 0
    for request_id, choice, start_index, num_tokens, finish in columns:
        end = begin + num_tokens
        frame.deltas.append(
            TokenDelta(
                request_id=request_id.hex(),
                choice=choice,
                start_index=start_index,
                token_ids=token_ids[begin:end],
                finish=FinishReason(finish),
                logprobs=[logprobs[index] for index in range(begin, end) if index in logprobs],
            )
        )
        begin = end
    frame.scheduled = [
        Scheduled(item.request_id, item.scheduled_unix_ns, item.num_cached_tokens)
        for item in message.scheduled
    ]
    frame.failed = [
        Failed(item.request_id, item.code, item.reason, item.message) for item in message.failed
    ]
    return frame


def _logprobs_of_tokens(deltas: Sequence[TokenDelta]) -> Iterable[TokenLogprobs | None]:
    for delta in deltas:
        yield from delta.logprobs or repeat(None, len(delta.token_ids))
