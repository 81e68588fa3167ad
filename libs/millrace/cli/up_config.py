"""Settings of `millrace up`; each is a flag, a variable MILLRACE_UP_* and a key of [up]."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.config.loader import setting
from millrace.config.values import Host
from millrace.core.errors import ConfigError
from millrace.core.url import NatsUrl, RedisUrl
from millrace.engine.config import QUANTIZATIONS


@dataclass(frozen=True)
class UpConfig:
    """What `millrace up` starts. Unset values are left to the services' own settings."""

    model: str | None = setting(
        None, help="Model to serve: a name, a folder or a hub id.", inherits="worker.model"
    )
    workers: int = setting(1, help="Workers side by side.")
    dtype: str | None = setting(
        None,
        help="Number type of the weights.",
        choices=("auto", "float32", "bfloat16"),
        inherits="worker.dtype",
    )
    quantization: str | None = setting(
        None,
        help="How weights are stored on a CPU.",
        choices=QUANTIZATIONS,
        inherits="worker.quantization",
    )
    host: Host | None = setting(None, help="Where the gateway listens.", inherits="gateway.host")
    http_port: int | None = setting(
        None, help="The gateway's HTTP port.", inherits="gateway.http_port"
    )
    grpc_port: int | None = setting(
        None, help="The gateway's gRPC port.", inherits="gateway.grpc_port"
    )
    nats_url: NatsUrl | None = setting(
        None, help="A nats-server that runs already.", unset="one is started"
    )
    redis_url: RedisUrl | None = setting(
        None, help="A Valkey or Redis that runs already.", unset="one is started"
    )
    telemetry: bool = setting(True, help="Keep traces of the last requests.")
    insecure_bind: bool = setting(False, help="Allow the gateway beyond loopback without keys.")
    first_answer: bool = setting(True, help="Show one streamed answer when the stack is ready.")
    fit_check: bool = setting(True, help="Refuse a model that does not fit into memory.")
    ready_timeout_s: float = setting(
        120.0, help="Longest wait for the gateway to have a model.", unit="s"
    )

    max_stall_s: float = setting(
        60.0,
        help="Longest time a process may not answer before it is ended and started again; 0: any.",
        unit="s",
    )

    def check(self) -> None:
        """Raises `ConfigError` for a number that cannot be."""
        if self.workers < 1:
            raise ConfigError(
                f"--workers is {self.workers}; it must be at least 1", field="workers"
            )
        if self.max_stall_s < 0:
            raise ConfigError(
                f"--max-stall-s is {self.max_stall_s:g}; it must be at least 0", field="max_stall_s"
            )
