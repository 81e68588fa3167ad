"""A turn of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

# The error code of a conversation with a model that only continues texts.
NO_CHAT_TEMPLATE = "no_chat_template"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """Who speaks ("system", "user", "assistant", or what the template knows) and what is said."""

    role: str
    content: str
    name: str | None = None
