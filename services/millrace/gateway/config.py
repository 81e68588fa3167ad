"""The gateway's settings."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.config.loader import setting
from millrace.config.values import Host
from millrace.core.errors import ConfigError
from millrace.core.loopback import is_loopback
from millrace.core.url import NatsUrl

from .http.hosts import AllowedHosts
from .http.origins import LOOPBACK, AllowedOrigins


@dataclass(frozen=True)
class GatewayConfig:
    """The public edge: gRPC and OpenAI-compatible HTTP."""

    host: Host = setting("127.0.0.1", help="address to listen on, for HTTP and gRPC")
    http_port: int = setting(8080, help="HTTP port", unset="a free one")
    grpc_port: int = setting(50051, help="gRPC port", unset="a free one")
    insecure_bind: bool = setting(
        False, help="allow a host beyond loopback although there are no API keys"
    )
    nats_url: NatsUrl = setting(NatsUrl("nats://127.0.0.1:4222"), help="NATS server")
    tokenizer_addresses: tuple[str, ...] = setting(
        ("127.0.0.1:50061",), help="host:port of each tokenizer replica"
    )
    cache_address: str = setting(
        "",
        help="host:port of the cache service",
        unset="no response cache, no idempotency keys",
    )
    default_model: str = setting(
        "", help="model of requests that name none", unset="the first one that registers"
    )
    default_sampling: str = setting(
        "model",
        help="what holds if a request is silent: the model's own defaults, or OpenAI's",
        choices=("model", "openai"),
    )
    max_body_bytes: int = setting(8 << 20, help="largest HTTP body or gRPC request", unit="bytes")
    max_connections: int = setting(
        4096, help="connections held at once, HTTP and gRPC each; more are refused"
    )
    max_in_flight: int = setting(4096, help="requests held at once; more are answered with 429")
    max_batch_size: int = setting(1024, help="most requests in one batch call")
    max_batch_concurrency: int = setting(256, help="requests of one batch that run at once")
    max_buffered_events: int = setting(
        1024, help="events kept for a client that reads too slowly before its request is cut"
    )
    default_timeout_s: float = setting(600.0, help="deadline of requests that set none", unit="s")
    max_timeout_s: float = setting(3600.0, help="longest deadline a request may set", unit="s")
    hold_s: float = setting(
        5.0,
        help="how long a new request waits for a part of the stack that is away before it is "
        "refused; 0: not at all",
        unit="s",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        help="host names that this gateway is asked by, beside loopback names and addresses; "
        "empty: these alone on a loopback host, any name elsewhere; *: any name",
    )
    cors_origins: tuple[str, ...] = setting(
        (LOOPBACK,),
        help="origins whose web pages may use this gateway: scheme://host[:port], port * for any; "
        "loopback: pages of this machine, on a loopback host; *: all pages; empty: none",
    )
    body_timeout_s: float = setting(
        30.0, help="how long an HTTP request's body may stand still", unit="s"
    )
    min_body_rate: float = setting(
        512.0, help="slowest HTTP request body, after body_timeout_s", unit="bytes/s"
    )
    ping_interval_s: float = setting(
        15.0, help="idle time after which a stream is pinged", unit="s"
    )
    write_timeout_s: float = setting(
        30.0, help="how long one write to a client may take before it is cut", unit="s"
    )
    drain_timeout_s: float = setting(
        10.0, help="how long running requests may go on after SIGTERM", unit="s"
    )

    trace_content: bool = setting(
        False, help="write prompts and answers, cut, into the spans; for development"
    )
    access_log: bool = setting(True, help="one line in the log per request, health probes left out")

    def check(self) -> None:
        """Raises `ConfigError` where a value cannot work."""
        if not is_loopback(self.host) and not self.insecure_bind:
            raise ConfigError(
                f"host {self.host} is beyond loopback and this release has no API keys; "
                "set --insecure-bind to listen there all the same",
                field="host",
            )
        if not self.tokenizer_addresses:
            raise ConfigError(
                "tokenizer_addresses is empty; name at least one host:port",
                field="tokenizer_addresses",
            )
        for name in (
            *("max_body_bytes", "max_in_flight", "max_buffered_events", "max_batch_size"),
            "max_connections",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1", field=name)
        if self.hold_s < 0:
            raise ConfigError(f"hold_s is {self.hold_s:g}; it must be at least 0", field="hold_s")
        for name in ("body_timeout_s", "min_body_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"{name} is {getattr(self, name):g}; it must be over 0", field=name
                )
        self.hosts()
        self.origins()
        if not 0 < self.default_timeout_s <= self.max_timeout_s:
            raise ConfigError(
                f"default_timeout_s {self.default_timeout_s:g} must be over 0 and at most "
                f"max_timeout_s {self.max_timeout_s:g}",
                field="default_timeout_s",
            )

    def hosts(self) -> AllowedHosts:
        """Raises `ConfigError` for what is no name."""
        return AllowedHosts.of(self.allowed_hosts, is_loopback=is_loopback(self.host))

    def origins(self) -> AllowedOrigins:
        """Raises `ConfigError` for what is no origin."""
        return AllowedOrigins.parse(self.cors_origins, is_loopback=is_loopback(self.host))
