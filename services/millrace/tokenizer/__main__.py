"""Wires the tokenizer service."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvloop

from millrace.config.loader import load_config
from millrace.core.errors import ConfigError, MillraceError
from millrace.hub.catalog import resolve_model
from millrace.internal.v1 import tokenizer_pb2_grpc
from millrace.rpc.run import exit_on_error, tell_ready
from millrace.rpc.server import RpcServer
from millrace.rpc.signals import run_until_signalled
from millrace.telemetry.metrics import TokenizerMetrics, create_registry, start_metrics_server
from millrace.telemetry.setup import configure_logging, start_telemetry

from .codec import Codec, load_codec
from .config import TokenizerConfig
from .servicer import TokenizerServicer

SERVICE_NAME = "millrace.internal.v1.TokenizerService"
NUM_ENCODE_THREADS = 2


def main() -> None:
    """Runs until SIGTERM or SIGINT."""
    with exit_on_error("tokenizer"):
        config = load_config(TokenizerConfig, "tokenizer")
        configure_logging("tokenizer")
        uvloop.run(serve(config, load_codecs(config.models)))


def load_codecs(models: tuple[str, ...]) -> dict[str, Codec]:
    """Codecs by name and alias, loaded before anything listens. Raises ConfigError."""
    if not models:
        raise ConfigError("models is empty; name at least one", field="models")
    codecs: dict[str, Codec] = {}
    for model in models:
        try:
            entry = resolve_model(model)
        except MillraceError as error:
            raise ConfigError(error.message, field="models") from error
        codec = load_codec(entry.path)
        codecs |= dict.fromkeys((entry.name, *entry.aliases, model), codec)
    return codecs


async def serve(config: TokenizerConfig, codecs: dict[str, Codec]) -> None:
    """Serves until the process is told to end."""
    # Before the ready line: whoever reads it may end the process at once.
    stopped = asyncio.create_task(run_until_signalled())
    telemetry = start_telemetry("tokenizer")
    registry = create_registry("tokenizer", telemetry)
    server = RpcServer("tokenizer", config.host, config.port)
    with ThreadPoolExecutor(NUM_ENCODE_THREADS, "encode") as executor:
        servicer = TokenizerServicer(codecs, executor, TokenizerMetrics(registry))
        server.add(
            tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, servicer, SERVICE_NAME
        )
        address = await server.start()
        if config.metrics_port:
            await start_metrics_server(registry, config.host, config.metrics_port)
        tell_ready("tokenizer", address)
        await stopped
        await server.stop(grace_s=1.0)
    telemetry.shutdown()


if __name__ == "__main__":
    main()
