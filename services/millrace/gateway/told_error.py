"""What of a refusal may be kept in logs and spans: not what the client wrote in the wrong place.

The client is shown its own words; somebody who reads logs is not, since they may be its prompt.
"""

from __future__ import annotations

import re

from millrace.core.errors import InvalidRequest, MillraceError

MAX_MESSAGE_CHARS = 256
MASK = '"..."'
# A path of fields as we name them; a key of the client's own may be anything.
_FIELD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""")


def told_field(error: MillraceError) -> str:
    """The name of the field that is wrong; empty if that is no name."""
    field = error.field or ""
    return field if _FIELD.fullmatch(field) else ""


def told_message(error: MillraceError) -> str:
    """The message with everything quoted left out."""
    message = error.message
    if isinstance(error, InvalidRequest):
        # The first two may be cut, and so have no second mark.
        for written in (error.metadata.get("value", ""), error.field or ""):
            if written and not _FIELD.fullmatch(written):
                message = message.replace(written, MASK)
        message = _QUOTED.sub(MASK, message)
    return message[:MAX_MESSAGE_CHARS]
