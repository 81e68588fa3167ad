"""Where a NATS server is and who we are there; the one file of the bus that knows the password."""

from __future__ import annotations

from typing import Any

from millrace.core.errors import ConfigError
from millrace.core.url import NatsUrl


def nats_address(url: NatsUrl | str) -> NatsUrl:
    """The URL, read if it is a text. Raises `ConfigError`, which does not quote it."""
    if isinstance(url, NatsUrl):
        return url
    try:
        return NatsUrl(url)
    except ValueError as exc:
        raise ConfigError(f"the URL of the NATS server {exc}", field="nats_url") from None


def credentials(url: NatsUrl) -> dict[str, Any]:
    """What the client's `connect` takes beside a URL without them.

    The client itself would take them from the URL undecoded, and have them in its errors.
    """
    if url.username is None:
        return {}
    if url.password is None:
        return {"token": url.username}
    return {"user": url.username, "password": url.password}
