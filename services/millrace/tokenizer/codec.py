"""Text to token ids and back for one model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from millrace.core.chat import ChatMessage
from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.core.errors import ConfigError, InvalidRequest

from .chat import ChatTemplate
from .checkpoint import Checkpoint, read_checkpoint
from .guard import Guard, guarded_description
from .pieces import create_row_decoder

STANDARD_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MAX_ROLE_CHARS = 64


class Codec:
    """A model's tokenizer and chat template; encoding is safe from several threads."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        template = checkpoint.template
        self._template: ChatTemplate | None = None
        if template is not None:
            self._template = ChatTemplate(template, checkpoint.named_tokens)
        self._guard = _create_guard(checkpoint.description["added_tokens"], self._template)
        self._tokenizer = _create_tokenizer(checkpoint.description, self._guard)
        self._decoder = create_row_decoder(
            self._tokenizer, checkpoint.description.get("decoder"), self._guard.original
        )
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        """True where `encode_chat` can work."""
        return self._template is not None

    def encode_text(self, text: str) -> list[int]:
        """A plain prompt, with BOS where the tokenizer adds it; special strings are plain text."""
        return self._encode(self._guard.seal_prompt(text), add_special_tokens=True)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """A conversation through the chat template, up to where the answer begins.

        Raises InvalidRequest where there is no template, or it refuses the messages.
        """
        if not messages:
            raise InvalidRequest("messages is empty", field="messages")
        if self._template is None:
            raise InvalidRequest(
                "the model has no chat template; send a plain prompt", field="messages"
            )
        rendered = self._template.render([self._visible(message) for message in messages])
        return self._encode(self._guard.seal(rendered), add_special_tokens=False)

    def decode_row(self, row: DecodeRow) -> DecodedRow:
        """See `millrace.tokenizer.stream`."""
        return self._decoder.decode_row(row)

    def piece(self, token_id: int) -> bytes:
        """The bytes of one token; empty where there is no such token."""
        return self._decoder.piece(token_id)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # Twice as fast as encode(): no offsets are made. Releases the GIL.
        batch = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = batch[0].ids
        return ids

    def _visible(self, message: ChatMessage) -> dict[str, str]:
        """A message as the template sees it: a dict without absent keys."""
        self._check_role(message.role)
        trusted = message.role == "assistant"
        visible = {
            "role": message.role,
            "content": self._guard.hide(message.content, trusted=trusted),
        }
        if message.name is not None:
            visible["name"] = self._guard.hide(message.name, trusted=False)
        return visible

    def _check_role(self, role: str) -> None:
        """Templates write roles into their own marks, so a role must not complete one."""
        if role in STANDARD_ROLES:
            return
        if not (0 < len(role) <= MAX_ROLE_CHARS and role.isprintable()):
            raise InvalidRequest(
                f"role {role[:MAX_ROLE_CHARS]!r} has {len(role)} characters; allowed are 1 to "
                f"{MAX_ROLE_CHARS}, printable",
                field="messages.role",
            )
        token = self._guard.contains(role)
        if token is not None:
            raise InvalidRequest(
                f"role {role!r} is not known and is part of the special token {token!r}",
                field="messages.role",
            )


def load_codec(folder: Path) -> Codec:
    """The codec of a model folder. Raises ConfigError, naming the folder, where it cannot be."""
    checkpoint = read_checkpoint(folder)
    try:
        return Codec(checkpoint)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error.message}") from error


def _create_guard(
    added_tokens: Sequence[Mapping[str, Any]], template: ChatTemplate | None
) -> Guard:
    special = [token["content"] for token in added_tokens if token["special"]]
    literals = template.literals if template is not None else ""
    control = [
        token["content"]
        for token in added_tokens
        if token["content"] in literals and not token["content"].isspace()
    ]
    return Guard(special, control)


def _create_tokenizer(description: Mapping[str, Any], guard: Guard) -> Tokenizer:
    guarded = guarded_description(description, guard)
    try:
        return Tokenizer.from_str(json.dumps(guarded, ensure_ascii=False))
    except Exception as error:
        # The library raises bare Exception for whatever it does not understand.
        raise ConfigError(f"tokenizer.json cannot be loaded: {error}") from error
