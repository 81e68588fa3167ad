"""Messages into the streams: taken in for good, or refused with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import nats.errors
import nats.js.errors

from millrace.core.errors import MillraceError, OutOfStorage, PayloadTooLarge

from .nats_errors import publish_error, raise_if_cancelled, store_error
from .nats_link import CALL_TIMEOUT_S, NatsLink, NatsSession

# Room for the subject, the headers and the protocol's own words beside the payload.
HEADER_ALLOWANCE_BYTES = 4096
MESSAGE_ID_HEADER = "Nats-Msg-Id"
PROBE_TIMEOUT_S = 1.0
# No message has this number: the probe deletes none.
NO_SEQUENCE = 2**63 - 1


class NatsPublisher:
    """Publishes to one stream.

    A server whose disk is full stops to answer publishers, and answers again only after its next
    start. Once that has happened, each publish asks first, and is refused at once.
    """

    def __init__(self, link: NatsLink, stream: str) -> None:
        self._link = link
        self._stream = stream
        self._is_store_suspect = False

    async def publish(
        self, subject: str, payload: bytes, message_id: str, headers: Mapping[str, str] | None
    ) -> None:
        """Returns when the stream has it. Raises `Overloaded`, `PayloadTooLarge`, `Unavailable`."""
        session = await self._link.session()
        limit = session.client.max_payload - HEADER_ALLOWANCE_BYTES
        if len(payload) > limit:
            raise PayloadTooLarge(
                f"the request has {len(payload)} bytes on the queue; the limit is {limit}",
                metadata={"value": str(len(payload)), "max": str(limit)},
            )
        if self._is_store_suspect:
            await self._require_store(session)
        try:
            # The library's time-out begins when the message is out of its hands.
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await session.jetstream.publish(
                    subject,
                    payload,
                    timeout=CALL_TIMEOUT_S,
                    stream=self._stream,
                    headers={**(headers or {}), MESSAGE_ID_HEADER: message_id},
                )
        except Exception as exc:
            raise_if_cancelled()
            raise await self._error(session, exc) from exc
        # The request of a client that has left meanwhile would run, with nobody to read it.
        raise_if_cancelled()

    async def _error(self, session: NatsSession, exc: Exception) -> MillraceError:
        error = publish_error(exc)
        if isinstance(exc, nats.js.errors.NoStreamResponseError):
            self._link.doubt(session, error.message)
        elif isinstance(exc, TimeoutError) and self._link.is_current(session):
            try:
                await self._require_store(session)
            except OutOfStorage as full:
                return full
        return error

    async def _require_store(self, session: NatsSession) -> None:
        """Raises `OutOfStorage` where the stream's store takes nothing.

        A write that fails for want of space is told to whoever wants to delete a message.
        """
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await session.jetstream.delete_msg(self._stream, NO_SEQUENCE)
        except nats.js.errors.APIError as exc:
            error = store_error(exc)
            self._is_store_suspect = error is not None
            if error is not None:
                raise error from exc
        except (nats.errors.Error, TimeoutError, OSError):
            # It may be forbidden to ask, and then the publish tells.
            self._is_store_suspect = False
        raise_if_cancelled()
