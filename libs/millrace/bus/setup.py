"""`millrace bus init`: makes streams, consumers and buckets. Services only verify them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError

from millrace.core.errors import ConfigError
from millrace.core.request import Priority
from millrace.core.url import NatsUrl

from .configuration import (
    bucket_configs,
    dead_letter_stream_config,
    request_consumer_config,
    request_stream_config,
)
from .nats_address import credentials, nats_address
from .nats_client import NatsClient
from .nats_errors import connect_failure
from .subjects import REQUEST_STREAM
from .verify import LIMITED_STREAM_SETTINGS, verify_jetstream


async def init_bus(url: NatsUrl | str, models: Sequence[str] = ()) -> None:
    """Creates or updates everything; safe to repeat. `models` get their consumers.

    Raises `ConfigError` where the server has no JetStream, cannot be reached or refuses.
    """
    url = nats_address(url)
    client = NatsClient(lambda reason: None)
    try:
        await client.open([url.without_credentials()], "init", credentials(url))
    except (OSError, nats.errors.Error) as exc:
        raise ConfigError(connect_failure(url, exc)) from exc
    try:
        jetstream = client.jetstream()
        with _refusals(f"the NATS server at {url}"):
            await verify_jetstream(jetstream, str(url))
        for config in (request_stream_config(), dead_letter_stream_config(), *bucket_configs()):
            with _refusals(f"the NATS server at {url}, stream {config.name}"):
                await _create_or_update(jetstream, config)
        for model in models:
            for priority in Priority:
                consumer = request_consumer_config(model, priority)
                with _refusals(f"the NATS server at {url}, consumer {consumer.durable_name}"):
                    await jetstream.add_consumer(REQUEST_STREAM, consumer)
    finally:
        await client.end()


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Some settings cannot be changed on what exists, and a store can be too small."""
    try:
        yield
    except nats.js.errors.APIError as exc:
        raise ConfigError(f"{where}: {exc.description}") from exc
    except (nats.errors.Error, TimeoutError) as exc:
        raise ConfigError(f"{where} does not answer: {type(exc).__name__}") from exc


async def _create_or_update(jetstream: JetStreamContext, config: StreamConfig) -> None:
    try:
        found = (await jetstream.stream_info(config.name or "")).config
    except NotFoundError:
        await jetstream.add_stream(config)
    else:
        await jetstream.update_stream(_with_sizes_of(found, config))


def _with_sizes_of(found: StreamConfig, config: StreamConfig) -> StreamConfig:
    """Replicas and limits are the operator's to choose; only what is unlimited gets a limit."""
    sizes = {name: getattr(found, name) for name in LIMITED_STREAM_SETTINGS}
    kept = {name: size for name, size in sizes.items() if size and size > 0}
    return config.evolve(num_replicas=found.num_replicas, **kept)
