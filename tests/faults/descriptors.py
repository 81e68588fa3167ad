"""The file descriptors of this process, which every fault must leave as they were."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from dataclasses import dataclass

from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer

WAIT_S = 5.0


@dataclass(frozen=True)
class Descriptors:
    """How many there are of each kind: regular files by path, the others as socket, pipe, ..."""

    kinds: Counter[str]

    @classmethod
    def now(cls) -> Descriptors:
        found: Counter[str] = Counter()
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                # That of the listing itself.
                continue
            kind = target.partition(":[")[0]
            # Pollers: gRPC opens some of its own when it likes, and keeps them.
            if kind != "anon_inode":
                found[kind] += 1
        return cls(found)

    async def check(self) -> None:
        """No more than these are open, once what is being closed has been."""
        gc.collect()
        try:
            async with asyncio.timeout(WAIT_S):
                while self._more():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"left open: {dict(self._more())}") from None

    def _more(self) -> Counter[str]:
        return Descriptors.now().kinds - self.kinds


# gRPC's poller lives as long as anything of gRPC's does: else it would come and go with the tests.
_keepers: list[object] = []


async def warm_up() -> None:
    """Has gRPC open, once, what it keeps for the life of the process."""
    if _keepers:
        return
    server = RpcServer("warm-up", "127.0.0.1", 0)
    channel = open_channel(await server.start())
    await channel.channel_ready()
    await channel.close()
    await server.stop(0)
    _keepers.append(channel)
