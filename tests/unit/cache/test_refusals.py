"""What is told of a Redis that will not, and what is not."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from millrace.cache.refusals import refusal_of
from millrace.core.url import RedisUrl

PLAIN = RedisUrl("redis://bob:hunter2@10.9.8.7:6379/0")
TLS = RedisUrl("rediss://bob:hunter2@10.9.8.7:6379/0")


def caused(error: RedisError, cause: Exception) -> RedisError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AuthenticationError("invalid username", status_code="WRONGPASS"), "refused the password"),
        (AuthenticationError("HELLO must be", status_code="NOAUTH"), "wants a password (NOAUTH)"),
        (AuthenticationError("invalid password", status_code="ERR"), "refused the password"),
        (
            AuthenticationError(
                "AUTH <password> called without any password configured for the default user. "
                "Are you sure your configuration is correct?",
                status_code="ERR",
            ),
            "has no password, but one was given",
        ),
        (NoPermissionError("User bob has no", status_code="NOPERM"), "does not allow its user"),
        (OutOfMemoryError("command not", status_code="OOM"), "maxmemory"),
        (BusyLoadingError("Valkey is", status_code="LOADING"), "is loading its data"),
        (ResponseError("DB index is out of range"), "no database of this number"),
        (ResponseError("MISCONF Errors writing to the AOF file"), "cannot save its data to disk"),
        (ResponseError("WRONGTYPE Operation against"), "something else under this key"),
        (
            # What Redis 5 answers: with all the arguments.
            ResponseError(
                "unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `bob`, `hunter2`"
            ),
            "is too old",
        ),
        (ResponseError("BUSY hunter2"), "Redis refuses (BUSY)"),
        (ResponseError("hunter2 is nothing that we know"), "Redis refuses"),
        (ConnectionError("Connection closed by server."), "closed the connection"),
        (TimeoutError("Timeout connecting to 10.9.8.7"), "does not answer in time"),
        (InvalidResponse("Protocol Error: b'HTTP/1.1'"), "what listens there is none"),
        (
            caused(
                ConnectionError("Error 111 connecting to 10.9.8.7:6379."),
                ConnectionRefusedError(errno.ECONNREFUSED, "10.9.8.7"),
            ),
            "cannot be reached: connection refused",
        ),
        (caused(ConnectionError("x"), socket.gaierror(-2, "10.9.8.7")), "host name is not known"),
        (RedisError("hunter2 at 10.9.8.7"), "does not answer (RedisError)"),
    ],
)
def test_the_reason_is_told_and_neither_password_nor_address(error: RedisError, said: str) -> None:
    for url in (PLAIN, TLS):
        told = refusal_of(error, url)
        assert said in told and told.startswith("Redis ")
        assert "hunter2" not in told and "10.9.8.7" not in told


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError("Timeout"), "does not answer in time; does it speak TLS there?"),
        (ConnectionError("Connection closed by server."), "does it speak TLS there?"),
        (
            caused(ConnectionError("x"), ssl.SSLError(1, "WRONG_VERSION")),
            "does it speak TLS there?",
        ),
        (
            caused(ConnectionError("x"), ssl.SSLCertVerificationError(1, "self-signed")),
            "its certificate does not hold",
        ),
    ],
)
def test_tls_is_named_where_it_may_be_the_reason(error: RedisError, said: str) -> None:
    assert said in refusal_of(error, TLS)
