"""What the pipeline needs of its neighbours, as Protocols; the wire clients are the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from millrace.core.answer import CachedAnswer, CacheStats
from millrace.core.chat import ChatMessage
from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.idempotency import IdempotencyRecord
from millrace.core.membership import ResumeQuery, SchedulerStatus
from millrace.core.tokens import TokenFrame


class Tokenizer(Protocol):
    """Text to token ids and back; raises `Unavailable` where no replica answers."""

    async def encode_text(
        self, model: str, text: str, *, max_ids: int | None = None
    ) -> EncodedPrompt:
        """Token ids of a plain prompt, unless these are more than `max_ids`."""

    async def encode_chat(
        self, model: str, messages: Sequence[ChatMessage], *, max_ids: int | None = None
    ) -> EncodedPrompt:
        """Token ids of a conversation, through the model's chat template; as of a prompt."""

    async def decode(self, model: str, rows: Sequence[DecodeRow]) -> list[DecodedRow]:
        """The text that new ids make certain, rows as asked."""

    async def pieces(
        self, model: str, token_ids: Sequence[int], *, is_at_start: bool = False
    ) -> list[bytes]:
        """The exact bytes of single tokens, in the middle of a text or at its start."""

    async def special_ids(self, model: str) -> dict[str, int]:
        """Special tokens, which no text shows: their strings and ids."""

    async def is_ready(self) -> bool:
        """True where a replica answers."""


class AnswerCache(Protocol):
    """Whole answers by key; a failure is a miss, never an error."""

    async def look_up(self, key: bytes) -> CachedAnswer | None:
        """None on a miss."""

    async def store(self, key: bytes, answer: CachedAnswer) -> bool:
        """False where it was not kept."""

    async def stats(self) -> CacheStats:
        """Counts of the cache and of its Redis."""


class IdempotencyRecords(Protocol):
    """Which request holds an idempotency key; every call raises `Unavailable` for not known."""

    async def claim(
        self, key: bytes, record: IdempotencyRecord, hold_s: float
    ) -> IdempotencyRecord | None:
        """Takes a free key for `hold_s`, None then; else the record of the request that has it."""

    async def finish(self, key: bytes, record: IdempotencyRecord) -> bool:
        """Keeps the record of a request that ended well; False where the key is another's."""

    async def free(self, key: bytes, request_id: str) -> bool:
        """Gives a key back; False where the request did not hold it."""


class SchedulerStream(Protocol):
    """One Attach stream; every call raises `Unavailable` after it broke."""

    def events(self) -> AsyncIterator[TokenFrame | ResumeQuery | SchedulerStatus]:
        """What the scheduler says, in order."""

    async def register(self, request_id: str) -> None:
        """Before a request is published."""

    async def resume(self, request_id: str, cursors: Mapping[int, Sequence[int]]) -> None:
        """Tells the tokens accepted so far, by choice."""

    async def gone(self, request_id: str) -> None:
        """Nobody waits for this request."""

    async def done(self, request_id: str) -> None:
        """The terminal event of every choice has arrived."""

    async def abort(self, request_id: str, reason: str) -> None:
        """Ends a request."""

    async def close(self) -> None:
        """Ends the stream; safe to repeat."""


# Opens an Attach stream to the scheduler at `host:port`.
OpenStream = Callable[[str], Awaitable[SchedulerStream]]
