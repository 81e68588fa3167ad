"""Text in, text out over a `LocalGenerator`: for the command line; services tokenize elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from millrace.core.step import RowToken
from millrace.core.tokens import FinishReason

from .local import LocalGenerator, LocalOutput, LocalRequest

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class TextOutput:
    """A finished text and what it took."""

    text: str
    finish: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int


class LocalTextGenerator:
    """The checkpoint's own tokenizer around a generator."""

    def __init__(self, generator: LocalGenerator, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._generator = generator
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt; with `chat` as the user's message in the model's chat template."""
        if not chat:
            return list(self._tokenizer(prompt)["input_ids"])
        messages = [{"role": "user", "content": prompt}]
        encoded = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def decode(self, token_ids: Sequence[int], prompt_token_ids: Sequence[int] = ()) -> str:
        """Text of token ids, special tokens left out; behind a prompt, what they add to it."""
        text: str = self._tokenizer.decode(
            [*prompt_token_ids, *token_ids], skip_special_tokens=True
        )
        return text[len(self.decode(prompt_token_ids)) :] if prompt_token_ids else text

    def generate(
        self,
        prompts: Sequence[str],
        request: LocalRequest,
        *,
        chat: bool = False,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[TextOutput]:
        """Runs all prompts with the settings of `request`; `on_text(index, text)` as it comes."""
        requests = [
            replace(request, prompt_token_ids=self.encode(prompt, chat=chat)) for prompt in prompts
        ]
        # An answer begins anew.
        before = [() if chat else each.prompt_token_ids for each in requests]
        streams = [_TextStream(partial(self.decode, prompt_token_ids=ids)) for ids in before]

        def on_token(index: int, token: RowToken) -> None:
            new_text = streams[index].push(token)
            if new_text and on_text is not None:
                on_text(index, new_text)

        outputs = self._generator.generate(requests, on_token)
        return [self._finished(*each) for each in zip(requests, outputs, before, strict=True)]

    def _finished(
        self, request: LocalRequest, output: LocalOutput, prompt_token_ids: Sequence[int]
    ) -> TextOutput:
        return TextOutput(
            text=self.decode(output.token_ids, prompt_token_ids),
            finish=output.finish,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=len(output.token_ids),
        )


class _TextStream:
    """Turns one output's tokens into text as soon as its characters are whole."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._token_ids: list[int] = []
        self._num_shown = 0

    def push(self, token: RowToken) -> str:
        self._token_ids.append(token.token_id)
        text = self._decode(self._token_ids)
        if text.endswith(UNFINISHED) and token.finish is FinishReason.NONE:
            return ""
        new_text = text[self._num_shown :]
        self._num_shown = len(text)
        return new_text
