"""Generation with the engine alone: no services, no network."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from millrace.config.home import millrace_home
from millrace.core.errors import InvalidRequest
from millrace.core.sampling import SamplingParams
from millrace.core.tokens import FinishReason
from millrace.hub.catalog import DEFAULT_MODEL

from .client import Answer, SamplingOptions
from .stack.model_choice import find_or_pull

DEFAULT_MAX_TOKENS = 256


class TextStream:
    """Token ids in, text out as soon as its characters are whole."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._ids: list[int] = []
        self.text = ""

    def add(self, token_id: int, *, is_last: bool) -> None:
        """Shows what the token makes certain."""
        self._ids.append(token_id)
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if is_last or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._on_text(text[len(self.text) :])
            self.text = text


def generate_locally(
    prompt: str, model: str, dtype: str, options: SamplingOptions, on_text: Callable[[str], None]
) -> Answer:
    """Continues one prompt. Raises `InvalidRequest`, and what hub and engine raise."""
    from millrace.engine import EngineConfig, create_engine
    from millrace.engine.local import LocalGenerator, LocalRequest

    if options.stop:
        raise InvalidRequest("--stop needs the stack; it is not there with --local", field="stop")
    params = _params(options)
    entry = find_or_pull(model or DEFAULT_MODEL, millrace_home())
    tokenizer = _load_tokenizer(entry.path)
    prompt_ids = tokenizer.encode(prompt).ids
    engine = create_engine(
        EngineConfig(model_path=entry.path, name=entry.name, revision=entry.revision, dtype=dtype)
    )
    room = engine.info.max_model_len - len(prompt_ids)
    stream, answer = TextStream(tokenizer, on_text), Answer(model=entry.name)
    answer.seed = secrets.randbits(64) if params.seed is None else params.seed
    request = LocalRequest(
        prompt_token_ids=prompt_ids,
        max_tokens=min(params.max_tokens or DEFAULT_MAX_TOKENS, max(room, 1)),
        sampling=params.spec(answer.seed),
        stop_token_ids=() if params.ignore_eos else None,
    )
    began = time.monotonic()

    def take(_: int, token: Any) -> None:
        answer.ttft_s = answer.ttft_s or time.monotonic() - began
        stream.add(token.token_id, is_last=token.finish is not FinishReason.NONE)

    (output,) = LocalGenerator(engine).generate([request], take)
    answer.total_s, answer.text = time.monotonic() - began, stream.text
    answer.token_ids, answer.num_output_tokens = output.token_ids, len(output.token_ids)
    answer.num_prompt_tokens = len(prompt_ids)
    answer.finish_reason = output.finish.name.lower()
    return answer


def _params(options: SamplingOptions) -> SamplingParams:
    given = {name: getattr(options, name) for name in options.__dataclass_fields__}
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def _load_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))
