"""Why Redis did not do it, in words for everybody: no password, no address, nothing of the library.

What Redis says may quote what it was told: an old one answers HELLO with all of its arguments.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator
from socket import gaierror

from redis.exceptions import ConnectionError, InvalidResponse, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from millrace.core.url import RedisUrl

# By the code in front of the answer.
_BY_CODE = {
    "WRONGPASS": "Redis refused the password (WRONGPASS)",
    "NOAUTH": "Redis wants a password (NOAUTH)",
    "NOPERM": "Redis does not allow its user what the cache does (NOPERM)",
    "OOM": "Redis is out of memory (OOM: maxmemory)",
    "READONLY": "Redis is read-only (READONLY)",
    "LOADING": "Redis is loading its data (LOADING)",
    "MASTERDOWN": "Redis has lost its primary (MASTERDOWN)",
    "MISCONF": "Redis cannot save its data to disk (MISCONF)",
    "WRONGTYPE": "Redis holds something else under this key (WRONGTYPE)",
}
# By words of the answer, where the code is a mere ERR.
_BY_WORDS = {
    "without any password configured": "Redis has no password, but one was given",
    "no password is set": "Redis has no password, but one was given",
    "invalid password": "Redis refused the password (invalid password)",
    "DB index": "Redis has no database of this number",
    "max number of clients": "Redis takes no more connections (maxclients)",
    "unknown command": "Redis is too old: it does not know a command of the cache",
}
_BY_ERRNO = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EHOSTUNREACH: "no route to its host",
    errno.ENETUNREACH: "no route to its network",
    errno.ENOENT: "its socket does not exist",
    errno.EACCES: "this user may not open its socket",
}


def refusal_of(error: RedisError | OSError, url: RedisUrl) -> str:
    """One sentence for `error`, which a call to the Redis at `url` has raised."""
    text = str(error)
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    if code in _BY_CODE:
        return _BY_CODE[code]
    if known := next((said for words, said in _BY_WORDS.items() if words in text), None):
        return known
    if isinstance(error, ResponseError):
        return f"Redis refuses ({code})" if code.isupper() else "Redis refuses"
    return _unreachable(error, url)


def _unreachable(error: RedisError | OSError, url: RedisUrl) -> str:
    tls = "; does it speak TLS there?" if url.scheme == "rediss" else ""
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "Redis cannot be trusted: its certificate does not hold"
        if isinstance(cause, ssl.SSLError):
            return f"Redis cannot be reached: the TLS handshake failed{tls}"
        if isinstance(cause, gaierror):
            return "Redis cannot be reached: its host name is not known"
        if isinstance(cause, OSError) and cause.errno in _BY_ERRNO:
            return f"Redis cannot be reached: {_BY_ERRNO[cause.errno]}"
    if isinstance(error, (TimeoutError, RedisTimeoutError)):
        return f"Redis does not answer in time{tls}"
    if isinstance(error, InvalidResponse):
        return "Redis does not answer: what listens there is none"
    if isinstance(error, ConnectionError):
        return f"Redis closed the connection{tls}"
    return f"Redis does not answer ({type(error).__name__})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
