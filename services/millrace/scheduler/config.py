"""Settings of the scheduler service."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.config.loader import setting
from millrace.config.values import Host
from millrace.core.url import NatsUrl

from .policy import SchedulerPolicy

_POLICY = SchedulerPolicy()


@dataclass(frozen=True)
class SchedulerConfig:
    """What one scheduler process is told."""

    host: Host = setting("127.0.0.1", help="address to listen on")
    port: int = setting(0, help="gRPC port", unset="a free one")
    advertise_address: str = setting(
        "",
        help="host:port for gateways",
        unset="as bound; if that is every address, the one that faces NATS",
    )
    metrics_port: int = setting(0, help="port of the Prometheus metrics", unset="off")
    nats_url: NatsUrl = setting(NatsUrl("nats://127.0.0.1:4222"), help="NATS server")
    scheduler_id: str = setting("", help="name of this process", unset="made at start")
    model: str = setting("smollm2-135m-instruct", help="served name of the model")
    target_itl_ms: float = setting(
        _POLICY.target_itl_ms,
        help="inter-token latency that prefill chunks must leave room for",
        unit="ms",
    )
    max_num_batched_tokens: int = setting(
        _POLICY.max_num_batched_tokens, help="most tokens of one step", unit="tokens"
    )
    lease_steps: int = setting(
        _POLICY.lease_steps, help="decode steps a worker may run without a newer plan"
    )
    max_num_waiting: int = setting(
        _POLICY.max_num_waiting, help="most requests fetched and without a row"
    )
    max_waiting_tokens: int = setting(
        _POLICY.max_waiting_tokens, help="most prompt tokens of those requests"
    )
    step_span_every: int = setting(16, help="one step in this many gets a span of its own")
    canary_every_s: float = setting(
        5.0,
        help="idle time after which a worker must generate a token, seen by nobody",
        unit="s",
        unset="never",
    )
    gateway_grace_s: float = setting(
        5.0, help="how long a gateway may be away before its requests end", unit="s"
    )
