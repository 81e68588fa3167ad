"""The access log of the gRPC edge."""

from __future__ import annotations

from typing import Any, cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from millrace.core.errors import MillraceError
from millrace.rpc.call_watch import CallWatch, ServicerContext

from .access_log import AccessLog
from .call_facts import UNKNOWN_ROUTE, CallFacts, begin_facts, current_facts

EDGE = "grpc"
# The health and the reflection service.
PROBE_PREFIX = "/grpc."


class RpcAccess(CallWatch):
    """Follows every call of the server that it is given to."""

    def __init__(self, log: AccessLog, service: ServiceDescriptor) -> None:
        self._log = log
        log.expect_methods(f"{service.full_name}/{method.name}" for method in service.methods)

    def begin(self, method: str, context: ServicerContext) -> None:
        """Notes a call and tells of it when it is over and its span has ended."""
        facts = begin_facts(
            CallFacts(
                EDGE,
                route=method.lstrip("/"),
                peer=_address(context.peer()),
                is_probe=method.startswith(PROBE_PREFIX),
            )
        )

        def ended(_: Any) -> None:
            code = _code_of(context)
            if facts.call is None:
                self._log.rpc_ended(facts, code)
            else:
                facts.call.when_ended(lambda: self._log.rpc_ended(facts, code))

        context.add_done_callback(cast(Any, ended))

    def failed(self, error: MillraceError) -> None:
        """See `CallWatch`."""
        facts = current_facts()
        facts.error = error
        if facts.call is not None and facts.call.error is None:
            facts.call.error = error

    def unknown(self, method: str) -> None:
        """See `CallWatch`."""
        facts = CallFacts(EDGE, route=UNKNOWN_ROUTE, path=method)
        self._log.rpc_ended(facts, grpc.StatusCode.UNIMPLEMENTED.name)


def _code_of(context: ServicerContext) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    # Without a word of ours: ended well, or left by the client.
    return grpc.StatusCode.OK.name if context.done() else grpc.StatusCode.CANCELLED.name


def _address(peer: str) -> str:
    """`ipv4:127.0.0.1:5000` as 127.0.0.1:5000; brackets of IPv6 come percent-encoded."""
    return peer.partition(":")[2].replace("%5B", "[").replace("%5D", "]") or peer
