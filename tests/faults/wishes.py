"""What a client of the random tests asks for, and what it must be answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from millrace.core.chat import ChatMessage
from millrace.core.detokenize import DecodeRow
from millrace.core.request import Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.core.tokens import FinishReason
from millrace.testing.model_worker import expected_output
from millrace.testing.tokenizers import CORPUS
from millrace.tokenizer.codec import Codec
from millrace.v1 import inference_pb2, types_pb2
from tests.integration.gateway import MODEL

STOP_TOKEN_ID = 0
MAX_PROMPT_CHARS = 60


@dataclass(frozen=True)
class Wish:
    """One request; `seed` is its own, so that the scheduler's side of it can be found."""

    seed: int
    text: str
    max_tokens: int
    num_choices: int
    ignores_eos: bool

    @classmethod
    def draw(cls, random: Random, seed: int, num_choices: int = 0) -> Wish:
        line = random.choice(CORPUS) * 3
        return cls(
            seed=seed,
            text=line[: random.randint(1, MAX_PROMPT_CHARS)],
            max_tokens=random.choice((1, 40, 160, 160)),
            num_choices=num_choices or random.choice((1, 1, 1, 3)),
            ignores_eos=random.random() < 0.7,
        )

    def fields(self) -> dict[str, Any]:
        """Of an HTTP body, the prompt left out."""
        sampling = {"temperature": 1.0, "max_tokens": self.max_tokens}
        return {"seed": self.seed, "ignore_eos": self.ignores_eos, **sampling}

    def generate(self, **options: Any) -> inference_pb2.GenerateRequest:
        return inference_pb2.GenerateRequest(text=self.text, options=self._options(options))

    def chat(self) -> inference_pb2.ChatRequest:
        message = types_pb2.Message(role="user", content=self.text)
        return inference_pb2.ChatRequest(messages=[message], options=self._options({}))

    def _options(self, options: dict[str, Any]) -> inference_pb2.RequestOptions:
        sampling = types_pb2.SamplingParams(
            seed=self.seed,
            temperature=1.0,
            max_tokens=self.max_tokens,
            num_choices=self.num_choices,
            ignore_eos=self.ignores_eos,
        )
        return inference_pb2.RequestOptions(sampling=sampling, **options)


@dataclass
class Reading:
    """What a client got of one wish, by choice."""

    wish: Wish
    is_chat: bool = False
    has_token_ids: bool = True
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    is_finished: bool = False
    num_events: int = 0

    def add(self, choice: int, text: str, token_ids: list[int] | None = None) -> None:
        self.token_ids.setdefault(choice, []).extend(token_ids or ())
        self.texts[choice] = self.texts.get(choice, "") + text

    def check(self, codec: Codec) -> None:
        """A beginning of the one right answer; all of it where it came to its end."""
        for choice in range(self.wish.num_choices):
            output, finish = expected_output(self._queued(codec), choice)
            text = _text(codec, output[:-1] if finish is FinishReason.STOP else output)
            got_text = self.texts.get(choice, "")
            assert text.startswith(got_text)
            if self.is_finished:
                assert got_text == text
            if self.has_token_ids:
                got = self.token_ids.get(choice, [])
                assert output[: len(got)] == got
                assert len(got) == len(output) or not self.is_finished

    def _queued(self, codec: Codec) -> QueuedRequest:
        wish = self.wish
        if self.is_chat:
            prompt = codec.encode_chat([ChatMessage("user", wish.text)])
        else:
            prompt = codec.encode_text(wish.text)
        return QueuedRequest(
            request_id="",
            gateway_id="",
            model=MODEL,
            prompt_token_ids=prompt,
            sampling=SamplingSpec(temperature=1.0, seed=wish.seed),
            stop_token_ids=() if wish.ignores_eos else (STOP_TOKEN_ID,),
            max_tokens=wish.max_tokens,
            num_choices=wish.num_choices,
            priority=Priority.NORMAL,
            deadline_unix_ms=0,
            arrival_unix_ns=0,
        )


def _text(codec: Codec, token_ids: list[int]) -> str:
    return codec.decode_row(DecodeRow((), 0, token_ids, True)).text
