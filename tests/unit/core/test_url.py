"""URLs of servers: read in one way or refused, and shown without what is secret."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.core.url import HttpUrl, NatsUrl, RedisUrl, Url

CANARY = "hunter2"
HOSTS = ("127.0.0.1", "[::1]", "redis.example")
# What separates the parts of a URL, and some more.
PASSWORDS = st.text(alphabet="#?/@:%[]\\& =ab1é\n", min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("kind", "text", "parts"),
    [
        (RedisUrl, "redis://h", ("redis", "h", 0, "", None, None)),
        (RedisUrl, "redis://h:6379/0", ("redis", "h", 6379, "/0", None, None)),
        (RedisUrl, "REDISS://:p%23s@h:1/2?ssl_cert_reqs=none", ("rediss", "h", 1, "/2", "", "p#s")),
        (RedisUrl, "unix:///run/redis.sock?db=1", ("unix", "", 0, "/run/redis.sock", None, None)),
        (NatsUrl, "nats://bob:a%3Ab@[::1]:4222", ("nats", "::1", 4222, "", "bob", "a:b")),
        (NatsUrl, "tls://token@nats.example", ("tls", "nats.example", 0, "", "token", None)),
        (HttpUrl, " https://u:@h/v1 ", ("https", "h", 0, "/v1", "u", "")),
        (HttpUrl, "http://u:a@b@h", ("http", "h", 0, "", "u", "a@b")),
    ],
)
def test_parts_are_found_and_decoded(kind: type[Url], text: str, parts: tuple[object, ...]) -> None:
    url = kind(text)

    assert parts == (url.scheme, url.host, url.port, url.path, url.username, url.password)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (RedisUrl, f"redis://:{CANARY}#x@127.0.0.1:6379/0", "two ways: it has a #"),
        (RedisUrl, f"redis://:{CANARY}/x@127.0.0.1:6379/0", "two ways: it has a @ behind the host"),
        (RedisUrl, f"redis://:{CANARY}?x@127.0.0.1:6379/0", "two ways: it has a @ behind the host"),
        (RedisUrl, f"redis://:p@ss?/#{CANARY}@127.0.0.1", "two ways"),
        (RedisUrl, f"redis://h/{CANARY}", "the number of a database"),
        (RedisUrl, f"redis://u:{CANARY}@/0", "has no host"),
        (RedisUrl, f"http://u:{CANARY}@h", "redis://, rediss:// or unix://, not with http://"),
        (RedisUrl, f"unix://u:{CANARY}@", "a socket by its whole path"),
        (NatsUrl, f"bob:{CANARY}@h:4222", "is no URL; it must begin with nats://"),
        (NatsUrl, f"nats://bob:{CANARY}@h:port", "a number from 1 to 65535"),
        (NatsUrl, f"nats://bob:{CANARY}@h:70000", "a number from 1 to 65535"),
        (NatsUrl, f"nats://bob:{CANARY}@::1:4222", "needs brackets"),
        (NatsUrl, f"nats://bob:{CANARY}@[{CANARY}]:4222", "no IPv6 address between"),
        (NatsUrl, f"nats://bob:{CANARY}%zz@h", "must be percent-encoded"),
        (NatsUrl, f"nats://bob:{CANARY}%ff@h", "not UTF-8 when decoded"),
        (NatsUrl, f"nats://bob:{CANARY} x@h", "a blank or a control character at position"),
        (NatsUrl, f"nats://bob:{CANARY}\nx@h", "a blank or a control character at position"),
        (NatsUrl, f"nats://{CANARY}@a,nats://b", "names several servers"),
        (HttpUrl, f"https://u:{CANARY}@h<x", "a host that no machine can have"),
        (HttpUrl, "", "is no URL"),
    ],
)
def test_what_is_wrong_is_said_and_the_value_is_not(
    kind: type[Url], text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        kind(text)

    assert message in str(caught.value)
    assert CANARY not in "".join(traceback.format_exception(caught.value, chain=True))


@given(password=PASSWORDS, host=st.sampled_from(HOSTS))
def test_an_encoded_password_always_arrives_and_never_shows(password: str, host: str) -> None:
    encoded = quote(password, safe="")
    url = RedisUrl(f"redis://bob:{encoded}@{host}:6379/0")

    assert (url.username, url.password, url.port) == ("bob", password, 6379)
    assert str(url) == f"redis://bob:***@{host}:6379/0"
    assert url.without_credentials() == f"redis://{host}:6379/0"


@given(password=PASSWORDS, host=st.sampled_from(HOSTS))
def test_a_raw_password_is_refused_or_read_as_it_was_meant(password: str, host: str) -> None:
    try:
        url = RedisUrl(f"redis://bob:{password}@{host}:6379/0")
    except ValueError:
        return
    assert (url.username, url.password) == ("bob", unquote(password))
    assert url.address == f"{host}:6379"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (NatsUrl(f"nats://bob:{CANARY}@h:1"), "nats://bob:***@h:1"),
        (NatsUrl(f"nats://{CANARY}@h:1"), "nats://***@h:1"),
        (RedisUrl(f"redis://:{CANARY}@h/0"), "redis://:***@h/0"),
        (RedisUrl(f"redis://h/0?password={CANARY}"), "redis://h/0?***"),
        (HttpUrl(f"https://h/v1?key={CANARY}"), "https://h/v1?***"),
        (HttpUrl("https://h/v1"), "https://h/v1"),
    ],
)
def test_every_way_of_writing_a_url_hides_its_secrets(url: Url, shown: str) -> None:
    @dataclass
    class Config:
        place: Url

    assert str(url) == f"{url}" == "%s" % url == shown  # noqa: UP031
    for text in (repr(url), repr(Config(url)), repr([url]), repr({"url": url})):
        assert CANARY not in text
    assert url.reveal() != shown or CANARY not in url.reveal()


def test_urls_are_values() -> None:
    assert NatsUrl("nats://u:a@h") == NatsUrl("nats://u:a@h")
    assert NatsUrl("nats://u:a@h") != NatsUrl("nats://u:b@h")
    assert len({NatsUrl("nats://h"), NatsUrl("nats://h")}) == 1
