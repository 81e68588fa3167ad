"""Stop strings that are or hold special tokens, whose text nobody sees, on every way in."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.chat import ChatMessage
from millrace.core.tokens import FinishReason
from millrace.gateway.events import ChoiceFinished, Delta
from millrace.gateway.special_tokens import SpecialTokens, SpecialTokensOfModels
from tests.unit.gateway.conftest import EOS, MARK, MODEL, FakeTokenizer

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

CHAT = {"messages": (ChatMessage("user", "hi"),)}
TEXT = {"text": "hi"}
IDS = {"token_ids": (104, 105)}
REPLY = [300, MARK, 303, 302, MARK, EOS, 300]


async def outcome(gateway: Harness, prompt: dict[str, Any], **sampling: Any) -> tuple[Any, ...]:
    """Text, ids, and how it ended."""
    gateway.reply = REPLY
    events = await gateway.read(await gateway.open(**prompt, sampling=sampling))
    deltas = [event for event in events if isinstance(event, Delta)]
    (end,) = (event for event in events if isinstance(event, ChoiceFinished))
    text = "".join(delta.text for delta in deltas)
    return (
        text,
        [i for delta in deltas for i in delta.token_ids],
        end.finish_reason,
        end.matched_stop,
    )


@pytest.mark.parametrize("prompt", [CHAT, TEXT, IDS])
@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"),
    [
        # A stop string that is a special token ends at it, as its id would.
        ("<eos>", "Hello!world", 6),
        # Its text counts inside a longer one, and is not shown.
        ("<mark>!", "Hello", 3),
        ("<mark>!w", "Hello", 4),
        ("lo<mark>", "Hel", 2),
        ("o<mark>!", "Hell", 3),
        ("d<mark><eos>Hel", "Hello!worl", 7),
        ("<mark><eos>", "Hello!world", 6),
    ],
)
async def test_special_tokens_count_in_stop_strings(
    gateway: Harness, prompt: Any, stop: str, text: str, num_tokens: int
) -> None:
    shown, ids, finish, matched = await outcome(gateway, prompt, stop=(stop,), ignore_eos=True)

    assert (shown, ids) == (text, REPLY[:num_tokens])
    assert (finish, matched) == (FinishReason.STOP, stop)


@pytest.mark.parametrize("stop", ["<mark>?", "<beyond>", "<eos><eos>", "mark", "<mar", "!<mark>"])
async def test_what_does_not_come_does_not_stop(gateway: Harness, stop: str) -> None:
    shown, ids, finish, matched = await outcome(gateway, TEXT, stop=(stop,), ignore_eos=True)

    assert (shown, ids) == ("Hello!worldHello", REPLY)
    assert (finish, matched) == (FinishReason.LENGTH, None)


async def test_special_stop_string_becomes_a_stop_token(gateway: Harness) -> None:
    await outcome(gateway, TEXT, stop=("<mark>", "x", "<beyond>", "<eos>"), stop_token_ids=(7,))
    assert gateway.queued.stop_token_ids == (EOS, 7, MARK)


async def test_end_of_sequence_that_was_asked_for_is_told_as_the_match(gateway: Harness) -> None:
    _, _, finish, matched = await outcome(gateway, TEXT, stop=("<eos>",))
    assert (finish, matched) == (FinishReason.STOP, "<eos>")


async def test_end_of_sequence_is_no_match_of_another_stop_string(gateway: Harness) -> None:
    _, _, finish, matched = await outcome(gateway, TEXT, stop=("<mark>?",))
    assert (finish, matched) == (FinishReason.STOP, None)


@pytest.mark.parametrize("min_tokens", [2, 3, 4])
async def test_special_token_inside_a_stop_string_counts_from_min_tokens_on(
    gateway: Harness, min_tokens: int
) -> None:
    shown, ids, _, matched = await outcome(
        gateway, TEXT, stop=("<mark>",), min_tokens=min_tokens, ignore_eos=True
    )
    # The scheduler keeps a stop token back until then; the fake one does not.
    assert gateway.queued.sampling.min_tokens == min_tokens

    shown, ids, _, matched = await outcome(
        gateway, TEXT, stop=("<mark>!",), min_tokens=min_tokens, ignore_eos=True
    )
    if min_tokens <= 3:
        assert (shown, len(ids), matched) == ("Hello", 3, "<mark>!")
    else:
        assert (shown, len(ids), matched) == ("Hello!worldHello", len(REPLY), None)


async def test_stop_strings_over_http_whole_and_streamed(gateway: Harness) -> None:
    gateway.reply = REPLY
    body = {"prompt": "hi", "stop": ["world<mark>"], "ignore_eos": True}
    async with gateway.client() as client:
        whole = await client.post("/v1/completions", json=body)
        streamed = await client.post("/v1/completions", json={**body, "stream": True})

    choice = whole.json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hello!", "stop")
    assert '"finish_reason":"stop"' in streamed.text
    assert "world" not in streamed.text


async def test_tokenizer_is_asked_once_and_only_if_it_matters(gateway: Harness) -> None:
    await outcome(gateway, TEXT)
    assert gateway.tokenizer.num_special_calls == 0
    for _ in range(3):
        await outcome(gateway, TEXT, stop=("x",))
        await outcome(gateway, CHAT, top_logprobs=0)
    assert gateway.tokenizer.num_special_calls == 1


async def test_other_revision_is_asked_about_again() -> None:
    tokenizer = FakeTokenizer()
    models = SpecialTokensOfModels(tokenizer)
    await models.of(MODEL)
    await models.of(dataclasses.replace(MODEL, revision="other"))
    special = await models.of(dataclasses.replace(MODEL, revision="other"))

    assert tokenizer.num_special_calls == 2
    assert special.by_string == {"<eos>": EOS, "<mark>": MARK}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("ab", ["a", "b"]),
        ("<a>", ["<a>"]),
        ("x<a><a>>", ["x", "<a>", "<a>>"]),
        ("<<a>", ["<", "<a>"]),
        ("<a", ["<", "a"]),
    ],
)
def test_longest_special_string_is_taken(text: str, pieces: list[str]) -> None:
    assert list(SpecialTokens({"<a>": 1, "<a>>": 2}).split(text)) == pieces
