"""Which roles a chat template knows.

A template that writes roles as they come (ChatML) would take any word for one, and a template that
handles a few may leave out the turns of all others without a word. So the template is asked: it
renders small conversations with a role, and with one that nobody can have heard of.
"""

from __future__ import annotations

import contextlib

from millrace.core.errors import InvalidRequest

from .chat import ChatTemplate

STANDARD_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_STRANGE_ROLE = "qzxvkj"
_CONTENT = "wqzjxk"
_MAX_SHOWN_CHARS = 64


class KnownRoles:
    """`roles`: standard ones whose words reach the prompt, and others that the template tells apart
    from any word. `written`: everything that it wrote to find out."""

    def __init__(self, template: ChatTemplate) -> None:
        samples = {role: _samples(template, role) for role in STANDARD_ROLES}
        strange = _samples(template, _STRANGE_ROLE)
        for word in template.words.difference(STANDARD_ROLES):
            spoken = _samples(template, word)
            if spoken.lower() != strange.lower().replace(_STRANGE_ROLE, word.lower()):
                samples[word] = spoken
        self.roles = tuple(role for role, text in samples.items() if _CONTENT in text.lower())
        self.written = "\0".join(samples.values())
        # The template says why itself.
        self._refused = frozenset(role for role in STANDARD_ROLES if not samples[role])

    def check(self, role: str, field: str) -> None:
        """Raises InvalidRequest for a role that the template does not know."""
        if role in self.roles or role in self._refused:
            return
        shown = role[:_MAX_SHOWN_CHARS]
        known = ", ".join(self.roles) or "none that says plain text"
        raise InvalidRequest(
            f"{field} is {shown!r}; the roles that the model's chat template knows: {known}",
            field=field,
            metadata={"value": shown},
        )


def _samples(template: ChatTemplate, role: str) -> str:
    """Conversations in which the role speaks first, later and last, without those refused."""
    turn = {"role": role, "content": _CONTENT}
    user = {"role": "user", "content": "xqzjwu"}
    assistant = {"role": "assistant", "content": "xqzjwa"}
    samples = []
    for messages in ([turn], [turn, user], [user, turn], [user, assistant, turn]):
        with contextlib.suppress(InvalidRequest):
            samples.append(template.render(messages))
    return "\0".join(samples)
