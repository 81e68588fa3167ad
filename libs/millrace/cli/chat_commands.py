"""Commands within a chat: `/set temperature 0.5` and its like."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from millrace.core.errors import InvalidRequest, MillraceError

from .chat_input import QUOTES
from .conversation import Conversation
from .sampling_flags import default_text, known_value, read_value, sampling_names, with_value

# Word, what follows it, what it does.
COMMANDS = (
    ("/help", "", "this list"),
    ("/reset", "", "forget the conversation; instructions stay"),
    ("/system", "TEXT", "instructions that come before everything; without TEXT: none"),
    ("/set", "NAME VALUE", "how answers are drawn; without VALUE: as the model has it"),
    ("/show", "", "model, instructions, and how answers are drawn"),
    ("/save", "FILE", "write the conversation as a request of /v1/chat/completions"),
    ("/bye", "", "leave; so do /exit and Ctrl-D"),
)
LEAVING = ("/bye", "/exit")
WORDS = (*(word for word, _, _ in COMMANDS), "/exit")
NOTES = (
    f"{QUOTES} begins a message of several lines and {QUOTES} ends it",
    "a backslash at the end of a line goes on with the next line",
    "Ctrl-C stops an answer",
)


def run_command(text: str, conversation: Conversation) -> list[str] | None:
    """Does what a line such as `/set seed 7` says. Returns lines to show, None to leave.

    Raises `InvalidRequest` for a command that is wrong, and `OSError` for a file that cannot be
    written.
    """
    word, _, rest = text.partition(" ")
    word, rest = word.lower(), rest.strip()
    if word in LEAVING:
        return None
    actions: dict[str, Callable[[str, Conversation], list[str]]] = {
        "/help": _help,
        "/reset": _reset,
        "/system": _system,
        "/set": _set,
        "/show": _show,
        "/save": _save,
    }
    if word not in actions:
        nearest = difflib.get_close_matches(word, WORDS, n=1, cutoff=0.0)[0]
        raise InvalidRequest(
            f"{word} is not a command; did you mean {nearest}? /help lists them, and a message "
            f"that begins with / goes between {QUOTES}"
        )
    return actions[word](rest, conversation)


def _help(rest: str, conversation: Conversation) -> list[str]:
    width = max(len(f"{word} {what}") for word, what, _ in COMMANDS)
    lines = [f"{f'{word} {what}':<{width}}  {meaning}" for word, what, meaning in COMMANDS]
    names = ", ".join(sampling_names())
    return [*lines, *NOTES, f"/set knows {names}"]


def _reset(rest: str, conversation: Conversation) -> list[str]:
    conversation.reset()
    return ["forgotten"]


def _system(rest: str, conversation: Conversation) -> list[str]:
    conversation.system = rest
    return ["instructions: " + (rest or "none")]


def _set(rest: str, conversation: Conversation) -> list[str]:
    name, _, text = rest.partition(" ")
    name, text = name.replace("-", "_").lower(), text.strip()
    if not name:
        return list(_drawn(conversation))
    if name not in sampling_names():
        nearest = difflib.get_close_matches(name, sampling_names(), n=1, cutoff=0.0)[0]
        raise InvalidRequest(f"{name} cannot be set; did you mean {nearest}?")
    value = read_value(name, text) if text else None
    conversation.sampling = with_value(conversation.sampling, name, value)
    return [f"{name}: {_value_text(name, conversation)}"]


def _show(rest: str, conversation: Conversation) -> list[str]:
    return [
        f"model: {conversation.model or 'the one that is served'}, at {conversation.address}",
        f"instructions: {conversation.system or 'none'}",
        f"messages so far: {len(conversation.turns)}",
        *_drawn(conversation),
    ]


def _drawn(conversation: Conversation) -> Iterator[str]:
    for name in sampling_names():
        yield f"{name}: {_value_text(name, conversation)}"


def _value_text(name: str, conversation: Conversation) -> str:
    value = known_value(conversation.sampling, name)
    return default_text(name) + " (not set)" if value is None else json.dumps(value)


def _save(rest: str, conversation: Conversation) -> list[str]:
    if not rest:
        raise InvalidRequest("/save needs the name of a file")
    path = Path(rest).expanduser()
    text = json.dumps(conversation.as_request(), ensure_ascii=False, indent=2)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError:
        raise InvalidRequest(f"{path} is there already; choose another name") from None
    return [f"{len(conversation.messages)} messages are in {path}"]


def command_fault(exc: MillraceError | OSError | RuntimeError) -> str:
    """What to say of a command that failed."""
    if isinstance(exc, OSError) and exc.filename is not None:
        return f"{exc.filename}: {exc.strerror}"
    return str(exc)
