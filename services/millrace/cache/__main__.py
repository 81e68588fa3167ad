"""Wires the cache service."""

from __future__ import annotations

import asyncio

import uvloop

from millrace.config.loader import load_config
from millrace.core.breaker import Breaker
from millrace.internal.v1 import cache_pb2_grpc
from millrace.rpc.run import exit_on_error, tell_ready
from millrace.rpc.server import RpcServer
from millrace.rpc.signals import run_until_signalled
from millrace.telemetry.metrics import CacheMetrics, create_registry, start_metrics_server
from millrace.telemetry.setup import configure_logging, start_telemetry

from .config import CacheConfig
from .guard import StoreGuard
from .idempotency import IdempotencyKeys
from .responses import ResponseCache
from .servicer import CacheServicer
from .store import RedisStore

SERVICE_NAME = "millrace.internal.v1.CacheService"


def main() -> None:
    """Runs until SIGTERM or SIGINT."""
    with exit_on_error("cache"):
        config = load_config(CacheConfig, "cache")
        configure_logging("cache")
        store = RedisStore(config.redis_url, ttl_s=config.ttl_s, max_bytes=config.max_bytes)
        uvloop.run(serve(config, store))


async def serve(config: CacheConfig, store: RedisStore) -> None:
    """Serves, with or without Redis, until the process is told to end."""
    # Before the ready line: whoever reads it may end the process at once.
    stopped = asyncio.create_task(run_until_signalled())
    telemetry = start_telemetry("cache")
    registry = create_registry("cache", telemetry)
    metrics = CacheMetrics(registry)
    guard = StoreGuard(Breaker(), metrics)
    responses = ResponseCache(store, guard, metrics, max_answer_bytes=config.max_answer_bytes)
    servicer = CacheServicer(
        responses, IdempotencyKeys(store, guard), max_answer_bytes=config.max_answer_bytes
    )
    server = RpcServer("cache", config.host, config.port)
    add_to_server = cache_pb2_grpc.add_CacheServiceServicer_to_server
    server.add(add_to_server, servicer, SERVICE_NAME)
    address = await server.start()
    if config.metrics_port:
        await start_metrics_server(registry, config.host, config.metrics_port)
    tell_ready("cache", address)
    # Whatever is wrong with Redis stands in the log before the first request.
    await responses.stats()
    await stopped
    await server.stop(grace_s=1.0)
    await guard.close()
    await store.close()
    telemetry.shutdown()


if __name__ == "__main__":
    main()
