"""The connection of a service: watched, and replaced by a new one whenever it is lost."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

import nats.errors
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from millrace.core.errors import ConfigError, Unavailable
from millrace.core.url import NatsUrl

from .nats_address import credentials
from .nats_client import NatsClient
from .nats_errors import connect_failure, raise_if_cancelled
from .subjects import OWNERS_BUCKET, WORKERS_BUCKET
from .verify import verify_bus

_log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0
# A peer that vanished without a word is found after at most the sum, and replaced within 15 s.
CHECK_EVERY_S = 2.0
PONG_TIMEOUT_S = 4.0
# How long a call waits for the next connection before it fails.
GRACE_S = 1.0
FIRST_RETRY_S = 0.1
MAX_RETRY_S = 1.0
CLOSE_TIMEOUT_S = 5.0
# A session this young is not doubted because a stream did not answer: it has just been verified.
MIN_DOUBTED_AGE_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class NatsSession:
    """One connection to a server whose streams and buckets are as they should be.

    `stream_created` tells the request stream from a later one of the same name.
    """

    client: NatsClient
    jetstream: JetStreamContext
    workers: KeyValue
    owners: KeyValue
    stream_created: datetime
    opened_s: float = field(default_factory=time.monotonic)


class NatsLink:
    """Always has a session, or is making one; made by `open`, ended by `close`."""

    def __init__(self, url: NatsUrl, name: str) -> None:
        self._url = url
        self._name = name
        self._servers = [url.without_credentials()]
        self._session: NatsSession | None = None
        self._client: NatsClient | None = None
        self._reason = "not connected yet"
        self._is_closed = False
        self._is_lost = asyncio.Event()
        self._is_up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, url: NatsUrl, name: str, timeout_s: float) -> NatsLink:
        """The link with its first session; tries for `timeout_s` where nobody answers.

        Raises `ConfigError` where nobody does, or where something is missing or wrong there.
        """
        link = cls(url, name)
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                link._take(await link._open_session())
                break
            except Unavailable as exc:
                if time.monotonic() > deadline_s:
                    raise ConfigError(exc.message) from exc
                await asyncio.sleep(FIRST_RETRY_S)
        link._keeper = asyncio.create_task(link._keep())
        return link

    @property
    def is_connected(self) -> bool:
        """True while there is a session."""
        return self._session is not None and bool(self._session.client.is_connected)

    def is_current(self, session: NatsSession) -> bool:
        """False for a session that has been lost."""
        return session is self._session

    async def session(self) -> NatsSession:
        """The session, waiting a moment for the next. Raises `Unavailable`; the log says why."""
        if self._session is not None:
            return self._session
        if not self._is_closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    return await self.next_session()
        # Without the reason: it names the server, and clients are told this.
        raise Unavailable("the message bus is away", retry_after_s=1.0)

    async def next_session(self) -> NatsSession:
        """The session, however long that takes."""
        while self._session is None:
            await self._is_up.wait()
        return self._session

    def doubt(self, session: NatsSession, reason: str) -> None:
        """Something that has been verified is gone: a new session is made, and verified."""
        if time.monotonic() - session.opened_s > MIN_DOUBTED_AGE_S:
            self._lose(session.client, reason)

    async def close(self) -> None:
        """Ends the connection; `session` raises from then on."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=CLOSE_TIMEOUT_S)
        self._session, self._reason, self._is_closed = None, "closed", True
        if self._client is not None:
            await self._client.end()

    async def _keep(self) -> None:
        while True:
            session = await self.next_session()
            await self._until_lost(session)
            await session.client.end()
            self._take(await self._reopen())
            _log.info("nats: connected again")

    async def _until_lost(self, session: NatsSession) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_EVERY_S):
                    await self._is_lost.wait()
            raise_if_cancelled()
            if self._is_lost.is_set():
                return
            if not await session.client.answers(PONG_TIMEOUT_S):
                self._lose(session.client, f"{self._url} gave no answer for {PONG_TIMEOUT_S:g} s")

    async def _reopen(self) -> NatsSession:
        delay_s = FIRST_RETRY_S
        while True:
            try:
                return await self._open_session()
            except (ConfigError, Unavailable) as error:
                if error.message != self._reason:
                    self._reason = error.message
                    _log.warning("nats: %s", error)
            raise_if_cancelled()
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, MAX_RETRY_S)

    async def _open_session(self) -> NatsSession:
        client = NatsClient(lambda reason: self._lose(client, reason))
        try:
            await client.open(self._servers, self._name, credentials(self._url))
        except (OSError, nats.errors.Error) as exc:
            raise Unavailable(connect_failure(self._url, exc)) from exc
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await self._verified(client)
        except BaseException as exc:
            await client.end()
            if isinstance(exc, (OSError, nats.errors.Error)):
                raise Unavailable(connect_failure(self._url, exc)) from exc
            raise

    async def _verified(self, client: NatsClient) -> NatsSession:
        jetstream = client.jetstream(timeout=CALL_TIMEOUT_S)
        stream_created = await verify_bus(jetstream, str(self._url))
        return NatsSession(
            client=client,
            jetstream=jetstream,
            workers=await jetstream.key_value(WORKERS_BUCKET),
            owners=await jetstream.key_value(OWNERS_BUCKET),
            stream_created=stream_created,
        )

    def _take(self, session: NatsSession) -> None:
        self._session, self._client = session, session.client
        # A cluster tells of its other servers, which are there when this one is not.
        named = self._url.without_credentials()
        others = {server.geturl() for server in session.client.servers} - {named}
        self._servers = [named, *sorted(others)]
        self._is_lost.clear()
        self._is_up.set()
        if not session.client.is_connected:
            self._lose(session.client, "it ended at once")

    def _lose(self, client: NatsClient, reason: str) -> None:
        if self._session is None or self._session.client is not client:
            return
        _log.warning("nats: the connection is given up and made anew: %s", reason)
        self._reason = reason
        self._session = None
        self._is_up.clear()
        self._is_lost.set()
