"""The messages of a chat request as turns."""

from __future__ import annotations

from typing import Any

from millrace.core.chat import ChatMessage
from millrace.core.errors import InvalidRequest
from millrace.core.request_fields.field import Kind, Place
from millrace.core.request_fields.ignored import IgnoredFields
from millrace.gateway.generation import MAX_MESSAGES

from .errors import unsupported_parameter
from .fields import missing_field, wrong_value
from .reading import read_fields

TEXT_PARTS = ("text", "input_text")
# Newer names of a role; templates know the older one.
SAME_ROLE = {"developer": "system"}
SILENT_ROLE = "assistant"


def parse_messages(messages: list[Any], ignored: IgnoredFields) -> tuple[ChatMessage, ...]:
    """The turns. Raises `InvalidRequest` naming the message and its field."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise InvalidRequest(
            f"messages has {len(messages)} entries; allowed are 1 to {MAX_MESSAGES}",
            field="messages",
        )
    return tuple(_message(each, f"messages[{i}]", ignored) for i, each in enumerate(messages))


def _message(message: Any, where: str, ignored: IgnoredFields) -> ChatMessage:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object", field=where)
    given = read_fields(Place.MESSAGE, message, ignored, f"{where}.")
    role = given.require("role", f"{where}.role")
    content = given.get("content")
    if content is None and role != SILENT_ROLE:
        path = f"{where}.content"
        raise wrong_value(path, None, Kind.CONTENT) if "content" in message else missing_field(path)
    text = _text(content, f"{where}.content", ignored)
    return ChatMessage(SAME_ROLE.get(role, role), text, given.get("name"))


def _text(content: Any, path: str, ignored: IgnoredFields) -> str:
    """What a content says. None, which only an assistant may say, is nothing."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise wrong_value(path, content, Kind.CONTENT)
    return "".join(_part(part, f"{path}[{i}]", path, ignored) for i, part in enumerate(content))


def _part(part: Any, where: str, path: str, ignored: IgnoredFields) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise wrong_value(where, part, 'an object such as {"type": "text", "text": "..."}', path)
    if kind not in TEXT_PARTS:
        raise unsupported_parameter(path, f"a part of type {kind[:40]!r}")
    text: str = read_fields(Place.PART, part, ignored, f"{where}.").require("text", f"{where}.text")
    return text
