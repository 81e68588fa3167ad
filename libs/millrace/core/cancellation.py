"""Why a request ended before its last token: the closed set that is counted and crosses wires."""

from __future__ import annotations

from enum import StrEnum


class CancelReason(StrEnum):
    """Values of the label `reason`."""

    CLIENT = "client"  # it cancelled its call or closed its connection
    ABORT = "abort"  # by id
    DEADLINE = "deadline"
    STOP_STRING = "stop_string"
    SLOW_CLIENT = "slow_client"  # it left too much unread
    REFUSED = "refused"  # it never got onto the queue
    SHUTDOWN = "shutdown"
    ERROR = "error"
    GONE = "gone"  # asked about, the gateway did not know it any more
    GATEWAY_GONE = "gateway_gone"
    OTHER = "other"

    @classmethod
    def parse(cls, text: str) -> CancelReason:
        """The reason of that name; OTHER where a newer peer knows more of them."""
        try:
            return cls(text)
        except ValueError:
            return cls.OTHER
