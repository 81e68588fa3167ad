"""Users, passwords and tokens of a NATS server: they open it, and they show nowhere."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from millrace.bus.nats import connect_bus
from millrace.bus.setup import init_bus
from millrace.core.errors import ConfigError
from millrace.core.url import NatsUrl
from millrace.testing.servers import free_port, start_nats

MODEL = "tiny"
PASSWORD = "hunt#er2/?@:%é "
# Not in the lines that a traceback quotes.
WRONG = "hunter2"
ENCODED = quote(PASSWORD, safe="")


async def _init(url: NatsUrl | str) -> None:
    await init_bus(url, [MODEL])


async def _connect(url: NatsUrl | str) -> None:
    await (await connect_bus(url, name="test", timeout_s=0.2)).close()


WAYS = pytest.mark.parametrize("use", [_init, _connect])


@pytest.mark.parametrize(
    ("options", "user"),
    [
        (["--user", "bob", "--pass", PASSWORD], f"bob:{ENCODED}"),
        (["--auth", PASSWORD], ENCODED),
    ],
    ids=["password", "token"],
)
async def test_what_is_encoded_in_the_url_opens_the_server(
    tmp_path: Path, options: list[str], user: str
) -> None:
    with start_nats(tmp_path, *options) as server:
        url = NatsUrl(f"nats://{user}@127.0.0.1:{server.port}")
        for use in (_init, _connect):
            await use(url)


@WAYS
@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("bob:hunter2@", "nats://bob:***@{address} refused the user or the password"),
        ("hunter2@", "nats://***@{address} refused the token"),
        ("", "nats://{address} wants a user or a token"),
    ],
    ids=["wrong", "token", "none"],
)
async def test_a_server_that_refuses_is_told_from_one_that_is_away(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    use: Callable[[str], Awaitable[None]],
    user: str,
    message: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    with start_nats(tmp_path, "--user", "bob", "--pass", PASSWORD) as server:
        address = f"127.0.0.1:{server.port}"
        with pytest.raises(ConfigError) as caught:
            await use(f"nats://{user}{address}")

    assert message.format(address=address) in caught.value.message
    assert WRONG not in _everything(caught.value, caplog)


@WAYS
async def test_an_absent_server_is_named_without_the_password(
    caplog: pytest.LogCaptureFixture, use: Callable[[str], Awaitable[None]]
) -> None:
    caplog.set_level(logging.DEBUG)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError) as caught:
        await use(f"nats://bob:{WRONG}@{address}")

    assert f"no NATS server answers at nats://bob:***@{address}" in caught.value.message
    assert "Connect call failed" in caught.value.message, "the reason of the last try"
    assert WRONG not in _everything(caught.value, caplog)


@WAYS
@pytest.mark.parametrize("url", ["nats://bob:hunter2#x@h", "bob:hunter2@h", "http://hunter2@h"])
async def test_a_text_that_is_no_url_of_nats_is_not_quoted(
    use: Callable[[str], Awaitable[None]], url: str
) -> None:
    with pytest.raises(ConfigError, match="the URL of the NATS server") as caught:
        await use(url)
    assert WRONG not in caught.value.message


def _everything(error: Exception, caplog: pytest.LogCaptureFixture) -> str:
    lines = [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    return "".join([*traceback.format_exception(error), *lines])
