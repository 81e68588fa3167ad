"""A request as the edges hand it to the pipeline: checked in itself, not yet against a model."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from millrace.core.chat import ChatMessage
from millrace.core.errors import InvalidRequest
from millrace.core.request import Priority
from millrace.core.request_fields.field import FieldNames
from millrace.core.request_fields.our_requests import TIMEOUT_MS
from millrace.core.sampling import SamplingParams, check_range
from millrace.telemetry.names import OPERATION_CHAT, OPERATION_TEXT_COMPLETION

MAX_MESSAGES = 4096
MAX_ROLE_CHARS = 64
MAX_IDEMPOTENCY_KEY_CHARS = 128


class CacheMode(StrEnum):
    """How a request uses the response cache; it is off unless asked for."""

    BYPASS = "bypass"
    USE = "use"
    REFRESH = "refresh"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate. Exactly one of `text`, `token_ids` and `messages` is given.

    `default_max_tokens` holds if `sampling` has no `max_tokens`, as far as the context allows;
    None: all of the context. `names` are the client's words for ours, for errors. Raises
    `InvalidRequest` if a part is wrong in itself.
    """

    model: str = ""
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[ChatMessage, ...] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: Priority = Priority.NORMAL
    timeout_ms: int | None = None
    cache: CacheMode = CacheMode.BYPASS
    idempotency_key: str | None = None
    tenant: str = ""
    is_streamed: bool = False
    default_max_tokens: int | None = None
    names: FieldNames = field(default_factory=FieldNames, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._check_prompt()
        for name, part in self._strings():
            check_unicode(name, part)
        if self.timeout_ms is not None:
            check_range(TIMEOUT_MS, self.timeout_ms, self.names)
        if self.idempotency_key is not None:
            check_idempotency_key(self.idempotency_key)

    def with_sampling(self, sampling: SamplingParams) -> GenerationRequest:
        """The same with other sampling; what has been checked is not checked again."""
        if sampling is self.sampling:
            return self
        other = copy(self)
        object.__setattr__(other, "sampling", sampling)
        return other

    def canonical(self) -> dict[str, Any]:
        """What the answer depends on beside the model, equal for requests that mean the same."""
        said = self.messages
        silent = self.sampling.max_tokens is None and self.default_max_tokens is not None
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "messages": None if said is None else [[m.role, m.content, m.name] for m in said],
            "sampling": self.sampling.canonical(),
            **({"default_max_tokens": self.default_max_tokens} if silent else {}),
        }

    @property
    def operation(self) -> str:
        """`chat` or `text_completion`, as traces name it."""
        return OPERATION_TEXT_COMPLETION if self.messages is None else OPERATION_CHAT

    @property
    def prompt_field(self) -> str:
        """The field that errors about the prompt name."""
        return self.names["prompt" if self.messages is None else "messages"]

    def _check_prompt(self) -> None:
        given = [part for part in (self.text, self.token_ids, self.messages) if part is not None]
        if len(given) != 1:
            raise InvalidRequest(
                "give a prompt as text, as token ids or as messages", field=self.prompt_field
            )
        if not given[0]:
            raise InvalidRequest(f"{self.prompt_field} is empty", field=self.prompt_field)
        if self.messages is not None:
            check_messages(self.messages)

    def _strings(self) -> Iterator[tuple[str, str]]:
        yield "model", self.model
        yield "idempotency_key", self.idempotency_key or ""
        if self.text is not None:
            yield self.prompt_field, self.text
        for index, message in enumerate(self.messages or ()):
            yield f"messages[{index}].role", message.role
            yield f"messages[{index}].content", message.content
            yield f"messages[{index}].name", message.name or ""
        for index, stop in enumerate(self.sampling.stop):
            yield f"{self.names['stop']}[{index}]", stop


def check_messages(messages: tuple[ChatMessage, ...]) -> None:
    """Raises `InvalidRequest` for too many messages or a role that cannot be one."""
    check_num_messages(len(messages))
    for index, message in enumerate(messages):
        if not 1 <= len(message.role) <= MAX_ROLE_CHARS:
            raise InvalidRequest(
                f"messages[{index}].role has {len(message.role)} characters; allowed are 1 to "
                f"{MAX_ROLE_CHARS}",
                field=f"messages[{index}].role",
            )


def check_num_messages(num_messages: int) -> None:
    """Raises `InvalidRequest` for too many messages."""
    if num_messages > MAX_MESSAGES:
        raise InvalidRequest(
            f"messages has {num_messages} entries; the limit is {MAX_MESSAGES}",
            field="messages",
            metadata={"value": str(num_messages), "max": str(MAX_MESSAGES)},
        )


def check_idempotency_key(key: str) -> None:
    """Raises `InvalidRequest` for an empty or overlong key; the key itself is not shown."""
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARS:
        raise InvalidRequest(
            f"idempotency_key has {len(key)} characters; allowed are 1 to "
            f"{MAX_IDEMPOTENCY_KEY_CHARS}",
            field="idempotency_key",
            metadata={"value": str(len(key)), "max": str(MAX_IDEMPOTENCY_KEY_CHARS)},
        )


def check_unicode(name: str, text: str) -> None:
    """Raises `InvalidRequest` for half of a surrogate pair, which no encoding can carry."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(
            f"{name} holds the lone surrogate U+{ord(text[exc.start]):04X} at character "
            f"{exc.start}; this is not valid Unicode",
            field=name,
        ) from exc
