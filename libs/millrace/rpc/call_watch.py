"""Who wants to know of every call at a server."""

from __future__ import annotations

from typing import Any, Protocol

import grpc

from millrace.core.errors import MillraceError

ServicerContext = grpc.aio.ServicerContext[Any, Any]


class CallWatch(Protocol):
    """Told in the task of the call. No call waits for it: it must be quick and must not raise."""

    def begin(self, method: str, context: ServicerContext) -> None:
        """A call has come in, and nothing has been made of it yet."""

    def failed(self, error: MillraceError) -> None:
        """The call of this task ends with an error of the tree."""

    def unknown(self, method: str) -> None:
        """A method that the server does not have was called."""
