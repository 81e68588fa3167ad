"""Text around a local generator: a completion goes on behind its prompt, an answer begins anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from millrace.core.step import RowToken
from millrace.core.tokens import FinishReason
from millrace.engine.local import LocalGenerator, LocalOutput, LocalRequest
from millrace.engine.text import LocalTextGenerator
from millrace.testing.tokenizers import write_sentencepiece


class _Fixed:
    """Says the same ids to every prompt."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def generate(self, requests: Sequence[LocalRequest], on_token: Any) -> list[LocalOutput]:
        for index, _ in enumerate(requests):
            for token_id in self.ids:
                on_token(index, RowToken(index, 0, token_id))
        return [LocalOutput(list(self.ids), FinishReason.LENGTH) for _ in requests]


@pytest.mark.parametrize(("chat", "text"), [(False, " fox jumps"), (True, "fox jumps")])
def test_first_space_is_kept_behind_a_prompt(tmp_path: Path, chat: bool, text: str) -> None:
    generator = _Fixed()
    texts = LocalTextGenerator(cast(LocalGenerator, generator), write_sentencepiece(tmp_path))
    prompt = texts.encode("The quick brown", chat=False)
    generator.ids = texts.encode("The quick brown fox jumps", chat=False)[len(prompt) :]
    pieces: list[str] = []

    (output,) = texts.generate(
        ["The quick brown"],
        LocalRequest([], 8),
        chat=chat,
        on_text=lambda index, piece: pieces.append(piece),
    )

    assert output.text == "".join(pieces) == text
