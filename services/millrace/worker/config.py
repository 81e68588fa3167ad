"""Settings of the worker service."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.config.loader import setting
from millrace.config.values import Host
from millrace.core.url import NatsUrl
from millrace.engine.config import QUANTIZATIONS


@dataclass(frozen=True)
class WorkerConfig:
    """What one worker process is told."""

    host: Host = setting("127.0.0.1", help="address to listen on")
    port: int = setting(0, help="gRPC port", unset="a free one")
    advertise_address: str = setting(
        "",
        help="host:port for schedulers",
        unset="as bound; if that is every address, the one that faces NATS",
    )
    metrics_port: int = setting(0, help="port of the Prometheus metrics", unset="off")
    nats_url: NatsUrl = setting(NatsUrl("nats://127.0.0.1:4222"), help="NATS server")
    worker_id: str = setting("", help="name in registrations", unset="made at start")
    model: str = setting("smollm2-135m-instruct", help="model to serve: name, alias or folder")
    dtype: str = setting(
        "auto", help="number type of weights and K/V", choices=("auto", "float32", "bfloat16")
    )
    device: str = setting("auto", help="where the model runs", choices=("auto", "cpu", "cuda"))
    backend: str = setting(
        "auto", help="kernels: our own for CPUs, or plain torch", choices=("auto", "cpu", "torch")
    )
    quantization: str = setting(
        "none",
        help="how weights are stored; int8 and int4 need the cpu backend",
        choices=QUANTIZATIONS,
    )
    kv_dtype: str = setting(
        "auto", help="how K/V is stored; int8 needs the cpu backend", choices=("auto", "int8")
    )
    instruction_path: str = setting(
        "auto", help="instruction set of the cpu backend; the verb `doctor` tells it"
    )
    route: str = setting("auto", help="model code", choices=("auto", "native", "generic"))
    num_blocks: int = setting(0, help="blocks of the KV cache", unset="sized by memory")
    block_size: int = setting(32, help="tokens per block", unit="tokens")
    max_num_seqs: int = setting(64, help="rows: sequences that run at once")
    max_model_len: int = setting(0, help="longest prompt and output", unset="the model's own")
    num_threads: int = setting(0, help="threads of the model", unset="one per core")
    heartbeat_s: float = setting(2.0, help="time between registrations", unit="s")
    max_stall_s: float = setting(
        60.0, help="a step that stands still for so long ends the process", unit="s", unset="never"
    )
