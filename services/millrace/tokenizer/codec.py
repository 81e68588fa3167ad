"""Text to token ids and back for one model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from millrace.config.home import Home, millrace_home
from millrace.core.chat import NO_CHAT_TEMPLATE, ChatMessage
from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import CODE_KEY, ConfigError, InternalError, InvalidRequest
from millrace.hub.tokenizer_files import TokenizerFiles, read_tokenizer_files

from .chat import ChatTemplate
from .freed_memory import return_freed_memory
from .guard import Guard, guard_description
from .library_errors import library_errors_told
from .pieces import create_row_decoder, special_ids
from .roles import KnownRoles

_log = logging.getLogger(__name__)
_SAMPLE = "a \u0101\n"


class Codec:
    """A model's tokenizer and chat template; encoding is safe from several threads.

    Uses up `files.description`, which may take several times of what the tokenizer does.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._template: ChatTemplate | None = None
        self._template_fault = files.template_fault
        if files.template is not None:
            try:
                self._template = ChatTemplate(files.template, files.named_tokens)
            except ConfigError as error:
                self._template_fault = error.message
        self._roles = None if self._template is None else KnownRoles(self._template)
        self._guard = self._create_guard(files.description["added_tokens"])
        decoder = files.description.get("decoder")
        self._tokenizer = _create_tokenizer(files.description, self._guard)
        self._decoder = create_row_decoder(self._tokenizer, decoder, self._guard.original)
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.special_ids = special_ids(self._tokenizer, self._guard.original)

    @property
    def has_chat_template(self) -> bool:
        """True if `encode_chat` can work."""
        return self._template is not None

    def encode(
        self, prompt: str | Sequence[ChatMessage], max_ids: int | None = None
    ) -> EncodedPrompt:
        """A plain prompt or a conversation. Ids of a prompt with more than `max_ids` tokens are
        left out: millions of them would hold up everybody while they are made and sent.

        Raises what `encode_text` and `encode_chat` raise.
        """
        if isinstance(prompt, str):
            encoding = self._encode(self._guard.seal_prompt(prompt), add_special_tokens=True)
        else:
            encoding = self._encode(self._rendered(prompt), add_special_tokens=False)
        num_tokens = len(encoding)
        is_wanted = max_ids is None or num_tokens <= max_ids
        return EncodedPrompt(num_tokens, encoding.ids if is_wanted else None)

    def encode_text(self, text: str) -> list[int]:
        """A plain prompt, with BOS where the tokenizer adds it; special strings are plain text."""
        return self.encode(text).token_ids or []

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """A conversation through the chat template, up to where the answer begins.

        Raises InvalidRequest if there is no usable template, if it does not know a role, or if it
        refuses the messages.
        """
        return self.encode(messages).token_ids or []

    def _rendered(self, messages: Sequence[ChatMessage]) -> str:
        if not messages:
            raise InvalidRequest("messages is empty", field="messages")
        if self._template is None or self._roles is None:
            reason = self._template_fault or "the model has no chat template"
            raise InvalidRequest(
                f"{reason}; send a plain prompt",
                field="messages",
                metadata={CODE_KEY: NO_CHAT_TEMPLATE},
            )
        for index, message in enumerate(messages):
            self._roles.check(message.role, f"messages[{index}].role")
        rendered = self._template.render([self._visible(message) for message in messages])
        return self._guard.seal(rendered)

    def decode_row(self, row: DecodeRow) -> DecodedRow:
        """See `millrace.tokenizer.stream`."""
        return self._decoder.decode_row(row)

    def piece(self, token_id: int, *, is_at_start: bool = False) -> bytes:
        """See `millrace.tokenizer.stream`."""
        return self._decoder.piece(token_id, is_at_start=is_at_start)

    def check(self) -> None:
        """Raises ConfigError if parts of the tokenizer do not fit together."""
        try:
            self.encode_text(_SAMPLE)
        except InternalError as error:
            reason = self._guard.original(str(error.__cause__))
            raise ConfigError(f"its tokenizer cannot encode: {reason}") from error

    def warnings(self) -> Iterator[str]:
        """What is likely not meant so, though it is as transformers has it."""
        if self._template_fault:
            yield f"{self._template_fault}; conversations are refused"
        bare = self._encode(_SAMPLE, add_special_tokens=False).ids
        ids = self.encode_text(_SAMPLE)
        if bare and ids[-1:] != bare[-1:]:
            last = self.piece(ids[-1]).decode(errors="replace")
            yield f"the tokenizer writes {last!r} behind every plain prompt"

    def _encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        with library_errors_told():
            # Twice as fast as encode(): no offsets are made. Releases the GIL.
            (encoding,) = self._tokenizer.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        return encoding

    def _visible(self, message: ChatMessage) -> dict[str, str]:
        """A message as the template sees it: a dict without absent keys."""
        trusted = message.role == "assistant"
        visible = {
            "role": message.role,
            "content": self._guard.hide(message.content, trusted=trusted),
        }
        if message.name is not None:
            visible["name"] = self._guard.hide(message.name, trusted=False)
        return visible

    def _create_guard(self, added_tokens: Sequence[Mapping[str, Any]]) -> Guard:
        written = ""
        if self._template is not None and self._roles is not None:
            written = f"{self._template.literals}\0{self._roles.written}"
        special = [token["content"] for token in added_tokens if token["special"]]
        control = [
            token["content"]
            for token in added_tokens
            if token["content"] in written and not token["content"].isspace()
        ]
        return Guard(special, control)


def load_codec(folder: Path, home: Home | None = None) -> Codec:
    """The codec of a model folder. Raises ConfigError, naming the folder, if it cannot be."""
    codec = _codec_of(folder, home or millrace_home())
    return_freed_memory()
    for warning in codec.warnings():
        _log.warning("%s: %s", folder, warning)
    return codec


def _codec_of(folder: Path, home: Home) -> Codec:
    files = read_tokenizer_files(folder, home)
    try:
        codec = Codec(files)
        codec.check()
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error.message}") from error
    except Exception as error:
        # Any part of a tokenizer.json can be wrong in any way.
        raise ConfigError(f"{folder}: tokenizer.json cannot be read: {error!r}") from error
    return codec


def _create_tokenizer(description: dict[str, Any], guard: Guard) -> Tokenizer:
    guard_description(description, guard)
    text = json.dumps(description, ensure_ascii=False).encode()
    description.clear()
    try:
        with library_errors_told():
            return Tokenizer.from_buffer(text)
    except InternalError as error:
        reason = guard.original(str(error.__cause__))
        raise ConfigError(f"tokenizer.json cannot be loaded: {reason}") from error
