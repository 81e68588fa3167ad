"""Settings of the cache service."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.config.loader import setting
from millrace.config.values import Host
from millrace.core.url import RedisUrl


@dataclass(frozen=True)
class CacheConfig:
    """What one cache process is told."""

    host: Host = setting("127.0.0.1", help="address to listen on")
    port: int = setting(0, help="port to listen on", unset="a free one")
    redis_url: RedisUrl = setting(
        RedisUrl("redis://127.0.0.1:6379/0"), help="Redis or Valkey server"
    )
    ttl_s: float = setting(3600.0, help="how long an answer is kept", unit="s")
    max_bytes: int = setting(256 << 20, help="most room for all answers together", unit="bytes")
    max_answer_bytes: int = setting(1 << 20, help="largest answer that is kept", unit="bytes")
    metrics_port: int = setting(0, help="port of the Prometheus metrics", unset="off")
