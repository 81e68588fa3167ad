"""Log-probabilities in columns: only the tokens that have some take room."""

from __future__ import annotations

from collections.abc import Iterable

from millrace.core.tokens import TokenLogprobs
from millrace.internal.v1 import logprobs_pb2


def pack_logprobs(
    entries: Iterable[TokenLogprobs | None],
) -> logprobs_pb2.PackedLogprobs | None:
    present = [(index, entry) for index, entry in enumerate(entries) if entry is not None]
    if not present:
        return None
    return logprobs_pb2.PackedLogprobs(
        token_index=[index for index, _ in present],
        chosen=[entry.chosen for _, entry in present],
        num_top=[len(entry.top) for _, entry in present],
        top_ids=[token_id for _, entry in present for token_id, _ in entry.top],
        top=[logprob for _, entry in present for _, logprob in entry.top],
    )


def unpack_logprobs(message: logprobs_pb2.PackedLogprobs) -> dict[int, TokenLogprobs]:
    unpacked: dict[int, TokenLogprobs] = {}
    top = list(zip(message.top_ids, message.top, strict=True))
    begin = 0
    columns = zip(message.token_index, message.chosen, message.num_top, strict=True)
    for index, chosen, num_top in columns:
        unpacked[index] = TokenLogprobs(chosen, tuple(top[begin : begin + num_top]))
        begin += num_top
    return unpacked
