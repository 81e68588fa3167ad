"""Are the streams, buckets and consumers as `millrace bus init` makes them? Services ask at start.

What decides how requests are kept must be equal; how many there may be is the operator's to choose,
but it must be limited.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, ConsumerInfo, StreamConfig
from nats.js.errors import NotFoundError

from millrace.core.errors import ConfigError

from .configuration import (
    MAX_PAYLOAD_BYTES,
    bucket_configs,
    dead_letter_stream_config,
    request_stream_config,
)

_log = logging.getLogger(__name__)

EQUAL_STREAM_SETTINGS = (
    "subjects",
    "retention",
    "storage",
    "discard",
    "discard_new_per_subject",
    "max_age",
    "duplicate_window",
)
LIMITED_STREAM_SETTINGS = ("max_msgs", "max_bytes", "max_msgs_per_subject")
EQUAL_BUCKET_SETTINGS = ("storage", "max_age", "max_msgs_per_subject")
EQUAL_CONSUMER_SETTINGS = (
    "filter_subject",
    "ack_policy",
    "ack_wait",
    "max_deliver",
    "max_ack_pending",
)
REMEDY = "run `millrace bus init`"


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that is not as it should be."""

    where: str
    setting: str
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: {self.setting} is {self.found}, wanted {self.wanted}"


async def verify_jetstream(jetstream: JetStreamContext, url: str) -> None:
    """Raises `ConfigError` where the server runs without JetStream, and what a lost server does."""
    try:
        await jetstream.account_info()
    except (nats.errors.NoRespondersError, nats.js.errors.APIError) as exc:
        raise ConfigError(
            f"the NATS server at {url} has no JetStream; start it with -js or a jetstream block"
        ) from exc


async def verify_bus(jetstream: JetStreamContext, url: str) -> datetime:
    """When the request stream was made. Raises `ConfigError` naming all that is missing or wrong.

    Errors of the client mean that the server cannot be asked now.
    """
    await verify_jetstream(jetstream, url)
    missing: list[str] = []
    differences: list[Difference] = []
    created: list[datetime | None] = []
    for what, config, equal, limited in _wanted_streams():
        try:
            info = await jetstream.stream_info(config.name or "")
        except NotFoundError:
            missing.append(what)
            continue
        created.append(info.created)
        differences += _compare(what, config, info.config, equal)
        differences += _unlimited(what, config, info.config, limited)
    if missing:
        raise ConfigError(f"the NATS server at {url} lacks {', '.join(missing)}; {REMEDY}")
    if differences:
        raise ConfigError(f"the NATS server at {url}: {'; '.join(map(str, differences))}; {REMEDY}")
    _note_payload_limit(jetstream, url)
    return created[0] or datetime.fromtimestamp(0, UTC)


def verify_consumer(info: ConsumerInfo, wanted: ConsumerConfig) -> None:
    """Raises `ConfigError` naming every setting of a consumer that is not as it should be."""
    what = f"the consumer {info.name}"
    differences = list(_compare(what, wanted, info.config, EQUAL_CONSUMER_SETTINGS))
    if differences:
        raise ConfigError(f"{'; '.join(map(str, differences))}; {REMEDY}")


def _wanted_streams() -> Iterator[tuple[str, StreamConfig, tuple[str, ...], tuple[str, ...]]]:
    requests, letters = request_stream_config(), dead_letter_stream_config()
    yield f"the stream {requests.name}", requests, EQUAL_STREAM_SETTINGS, LIMITED_STREAM_SETTINGS
    yield f"the stream {letters.name}", letters, EQUAL_STREAM_SETTINGS, ("max_msgs",)
    for bucket in bucket_configs():
        name = (bucket.name or "").removeprefix("KV_")
        yield f"the bucket {name}", bucket, EQUAL_BUCKET_SETTINGS, ()


def _compare(
    where: str, wanted: object, found: object, settings: tuple[str, ...]
) -> Iterator[Difference]:
    for setting in settings:
        want, have = _plain(getattr(wanted, setting)), _plain(getattr(found, setting))
        if want != have:
            yield Difference(where, setting, _shown(setting, want), _shown(setting, have))


def _unlimited(
    where: str, wanted: StreamConfig, found: StreamConfig, settings: tuple[str, ...]
) -> Iterator[Difference]:
    for setting in settings:
        if (getattr(found, setting) or 0) <= 0:
            want = getattr(wanted, setting)
            yield Difference(where, setting, f"a limit, such as {want}", "unlimited")


def _plain(value: Any) -> Any:
    """The server's words for what the client has in enumerations."""
    return value.value if isinstance(value, Enum) else value


def _shown(setting: str, value: Any) -> str:
    if setting in ("max_age", "duplicate_window", "ack_wait"):
        return f"{value or 0:.12g} s"
    return repr(value) if value is None or isinstance(value, (str, list)) else str(value)


def _note_payload_limit(jetstream: JetStreamContext, url: str) -> None:
    """A smaller limit is served, with shorter prompts: each request is measured against it."""
    limit = jetstream._nc.max_payload
    if limit < MAX_PAYLOAD_BYTES:
        _log.warning("nats: max_payload of %s is %d, wanted %d", url, limit, MAX_PAYLOAD_BYTES)
