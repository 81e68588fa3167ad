"""The gRPC edge of the tokenizer: convert, call, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import accumulate, pairwise
from time import perf_counter

import grpc

from millrace.core.chat import ChatMessage
from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import InvalidRequest, UnknownModel
from millrace.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from millrace.telemetry.metrics import TokenizerMetrics, observe

from .codec import Codec
from .freed_memory import return_freed_memory

# Longer inputs (over about 4 ms of work) are encoded beside the event loop.
MAX_INLINE_CHARS = 20_000
# A text that is longer takes tens of megabytes, which are then given back.
MIN_FREED_CHARS = 500_000
# What a message costs besides its text, in characters of text.
MESSAGE_CHARS = 64

ServicerContext = grpc.aio.ServicerContext[object, object]


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """codecs: by every name that a model answers to. executor: where long inputs are encoded."""

    def __init__(
        self, codecs: Mapping[str, Codec], executor: Executor, metrics: TokenizerMetrics
    ) -> None:
        self._codecs = codecs
        self._executor = executor
        self._metrics = metrics

    async def Encode(
        self, request: tokenizer_pb2.EncodeRequest, context: ServicerContext
    ) -> tokenizer_pb2.EncodeResponse:
        """Text or conversation to token ids."""
        started = perf_counter()
        codec = self._codec(request.model)
        kind = request.WhichOneof("input")
        if kind == "chat":
            messages = [
                ChatMessage(turn.role, turn.content, turn.name if turn.HasField("name") else None)
                for turn in request.chat.messages
            ]
            num_chars = sum(len(message.content) + MESSAGE_CHARS for message in messages)
            encoded = await self._encode(codec, messages, num_chars, request)
        elif kind == "text":
            encoded = await self._encode(codec, request.text, len(request.text), request)
        else:
            raise InvalidRequest("neither text nor chat is given", field="input")
        observe(self._metrics.encode, perf_counter() - started)
        self._metrics.encoded_tokens.inc(encoded.num_tokens)
        return tokenizer_pb2.EncodeResponse(
            token_ids=encoded.token_ids, num_tokens=encoded.num_tokens
        )

    async def Decode(
        self, requests: AsyncIterator[tokenizer_pb2.DecodeRequest], context: ServicerContext
    ) -> AsyncIterator[tokenizer_pb2.DecodeResponse]:
        """Frame by frame, in order."""
        async for request in requests:
            started = perf_counter()
            codec = self._codec(request.model)
            response = _decode_response([codec.decode_row(row) for row in _decode_rows(request)])
            self._metrics.detokenize.observe(perf_counter() - started)
            self._metrics.detokenized_tokens.inc(len(request.new_ids))
            yield response

    async def GetPieces(
        self, request: tokenizer_pb2.GetPiecesRequest, context: ServicerContext
    ) -> tokenizer_pb2.GetPiecesResponse:
        """The bytes of single tokens."""
        codec = self._codec(request.model)
        return tokenizer_pb2.GetPiecesResponse(
            pieces=[
                codec.piece(token_id, is_at_start=request.is_at_start)
                for token_id in request.token_ids
            ]
        )

    async def GetTokenizer(
        self, request: tokenizer_pb2.GetTokenizerRequest, context: ServicerContext
    ) -> tokenizer_pb2.GetTokenizerResponse:
        """Size, chat template, names and special tokens."""
        codec = self._codec(request.model)
        return tokenizer_pb2.GetTokenizerResponse(
            vocab_size=codec.vocab_size,
            has_chat_template=codec.has_chat_template,
            models=[name for name, other in self._codecs.items() if other is codec],
            special_ids=codec.special_ids,
        )

    def _codec(self, model: str) -> Codec:
        codec = self._codecs.get(model)
        if codec is None:
            raise UnknownModel(
                f"this tokenizer does not serve {model!r}; it serves "
                f"{', '.join(sorted(self._codecs))}",
                field="model",
            )
        return codec

    async def _encode(
        self,
        codec: Codec,
        prompt: str | Sequence[ChatMessage],
        num_chars: int,
        request: tokenizer_pb2.EncodeRequest,
    ) -> EncodedPrompt:
        max_ids = request.max_ids if request.HasField("max_ids") else None
        if num_chars <= MAX_INLINE_CHARS:
            return codec.encode(prompt, max_ids)
        loop = asyncio.get_running_loop()
        encode = _encode_and_free if num_chars > MIN_FREED_CHARS else Codec.encode
        return await loop.run_in_executor(self._executor, encode, codec, prompt, max_ids)


def _encode_and_free(
    codec: Codec, prompt: str | Sequence[ChatMessage], max_ids: int | None
) -> EncodedPrompt:
    try:
        return codec.encode(prompt, max_ids)
    finally:
        return_freed_memory()


def _decode_rows(request: tokenizer_pb2.DecodeRequest) -> list[DecodeRow]:
    """The columns of a request as rows. Raises InvalidRequest where they do not fit together."""
    num_rows = len(request.num_new)
    columns = (request.num_tail, request.num_tail_shown, request.final)
    if any(len(column) != num_rows for column in columns):
        raise InvalidRequest(f"the columns of {num_rows} rows differ in length", field="num_new")
    tails = _split(request.tail_ids, request.num_tail, "tail_ids")
    news = _split(request.new_ids, request.num_new, "new_ids")
    rows = [
        DecodeRow(tail, shown, new, final)
        for tail, shown, new, final in zip(
            tails, request.num_tail_shown, news, request.final, strict=True
        )
    ]
    for number in request.rows_after_prompt:
        if number >= num_rows:
            raise InvalidRequest(
                f"rows_after_prompt holds {number}; there are {num_rows} rows",
                field="rows_after_prompt",
            )
        rows[number] = replace(rows[number], is_after_prompt=True)
    return rows


def _split(ids: Sequence[int], counts: Sequence[int], field: str) -> list[Sequence[int]]:
    ends = list(accumulate(counts, initial=0))
    if ends[-1] != len(ids):
        raise InvalidRequest(
            f"{field} has {len(ids)} entries; its counts add up to {ends[-1]}", field=field
        )
    return [ids[start:end] for start, end in pairwise(ends)]


def _decode_response(rows: Sequence[DecodedRow]) -> tokenizer_pb2.DecodeResponse:
    return tokenizer_pb2.DecodeResponse(
        texts=[row.text for row in rows],
        num_tail=[len(row.tail_ids) for row in rows],
        num_tail_shown=[row.num_tail_shown for row in rows],
        tail_ids=[token_id for row in rows for token_id in row.tail_ids],
    )
