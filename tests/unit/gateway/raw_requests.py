"""Raw bytes for the HTTP edge, and the statuses that RFC 9112 and RFC 9110 ask for.

Whoever wrote them may not have meant HTTP. `SMUGGLED` stands where only a server that lost count of
a body would see a request.
"""

from __future__ import annotations

from dataclasses import dataclass

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
BAD = "400"
OK = "200"


@dataclass(frozen=True)
class Raw:
    """What is sent, and the status of each reply; `400|501` allows either."""

    name: str
    sent: bytes
    statuses: tuple[str, ...]


def get(target: bytes = b"/a", *lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """A request without a body; `lines` stand behind a Host line."""
    return b"\r\n".join((b"GET %s %s" % (target, version), b"Host: localhost", *lines, b"", b""))


def post(*lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """A request whose `lines` frame the body."""
    return b"\r\n".join((b"POST /a %s" % version, b"Host: localhost", *lines, b"", b"")) + body


def chunked(chunks: bytes, *lines: bytes) -> bytes:
    """A request whose body is these bytes of chunks."""
    return post(b"Transfer-Encoding: chunked", *lines, body=chunks)


LENGTH_5 = b"Content-Length: 5"
CHUNKED = b"Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
UPGRADE = (b"Connection: Upgrade", b"Upgrade: h2c")
WEBSOCKET = (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket")
TLS = (b"Connection: upgrade", b"Upgrade: TLS/1.0")
GZIP = b"Transfer-Encoding: gzip"
OLD = b"HTTP/1.0"
INNER_LENGTH = b"Content-Length: %d" % len(SMUGGLED)
INNER_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)

_TABLE: list[tuple[str, bytes, str]] = [
    ("a request", get(), OK),
    ("a body", post(LENGTH_5, body=b"hello"), OK),
    ("a body of chunks", chunked(HELLO), OK),
    ("two requests", get() + get(b"/b"), "200 200"),
    ("pipelined bodies", post(LENGTH_5, body=b"hello") + chunked(HELLO) + get(), "200 200 200"),
    ("a body that is a request", post(INNER_LENGTH, body=SMUGGLED), OK),
    ("chunks that are a request", chunked(INNER_CHUNKS), OK),
    ("HEAD", get().replace(b"GET", b"HEAD"), OK),
    ("HEAD, then GET", get().replace(b"GET", b"HEAD") + get(), "200 200"),
    ("no bytes", b"", ""),
    ("empty lines only", b"\r\n\r\n", ""),
    ("no reply body", get(b"/204") + get(b"/304") + get(), "204 304 200"),
    # 2.2: lines.
    ("empty lines before", b"\r\n\r\n" + get(), OK),
    ("LF for CRLF", get().replace(b"\r\n", b"\n"), BAD),
    ("LF after the request line", b"GET /a HTTP/1.1\nHost: localhost\r\n\r\n", BAD),
    ("LF after a field", get(b"/a", b"A: b\nC: d"), BAD),
    ("LF for the empty line", b"GET /a HTTP/1.1\r\nHost: localhost\r\n\n", BAD),
    ("CR in a value", get(b"/a", b"A: b\rc"), BAD),
    ("CR CR LF", get(b"/a", b"A: b\r"), BAD),
    ("NUL in a value", get(b"/a", b"A: b\0c"), BAD),
    ("a control character in a value", get(b"/a", b"A: b\x01c"), BAD),
    ("DEL in a value", get(b"/a", b"A: b\x7fc"), BAD),
    ("bytes over 127 in a value", get(b"/a", b"A: \xe9"), OK),
    ("a tab in a value", get(b"/a", b"A: b\tc"), OK),
    ("white space before the first field", get().replace(b"Host", b" Host"), BAD),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", BAD),
    ("rubbish", b"rubbish\r\n\r\n", BAD),
    ("rubbish behind a request", get() + b"rubbish\r\n\r\n", "200 400"),
    ("a head that is cut", b"GET /a HTTP/1.1\r\nHost: loc", BAD),
    ("a body that is cut", post(LENGTH_5, body=b"hel"), BAD),
    ("chunks that are cut", chunked(b"5\r\nhel"), BAD),
    ("chunks that are cut before the last", chunked(b"5\r\nhello\r\n"), BAD),
    # 2.3 and 3: version and request line.
    ("HTTP/0.9", b"GET /a\r\n\r\n", "505|400"),
    ("HTTP/0.9 said", get(version=b"HTTP/0.9"), "505"),
    ("HTTP/1.2", get(version=b"HTTP/1.2"), "505"),
    ("HTTP/2.0", get(version=b"HTTP/2.0"), "505"),
    ("HTTP/2.0 with a body", post(INNER_LENGTH, body=SMUGGLED, version=b"HTTP/2.0"), "505"),
    ("HTTP/3.7", get(version=b"HTTP/3.7"), "505"),
    ("HTTP/1.10", get(version=b"HTTP/1.10"), BAD),
    ("HTTP/1", get(version=b"HTTP/1"), BAD),
    ("http/1.1", get(version=b"http/1.1"), BAD),
    ("HTTP /1.1", get(version=b"HTTP /1.1"), BAD),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
    ("tabs for spaces", get().replace(b"GET /a ", b"GET\t/a\t"), BAD),
    ("a space after the version", get(version=b"HTTP/1.1 "), BAD),
    ("a space in the target", get(b"/a b"), BAD),
    ("a space before the method", b" " + get(), BAD),
    ("an unknown method", get().replace(b"GET", b"BREW"), "501|400"),
    ("a method in small letters", get().replace(b"GET", b"get"), "501|400"),
    ("a method with a colon", get().replace(b"GET", b"G:T"), BAD),
    ("a long target", get(b"/" + b"a" * 40_000), "431"),
    ("a long value", get(b"/a", b"A: " + b"b" * 40_000), "431"),
    ("many fields", get(b"/a", *[b"A%d: b" % n for n in range(8000)]), "431"),
    # 3.2: target and Host.
    ("a control character in the target", get(b"/a\x01"), BAD),
    ("bytes over 127 in the target", get(b"/\xe9"), BAD),
    ("a fragment", get(b"/a#b"), BAD),
    ("a relative target", get(b"a"), BAD),
    ("an absolute target", get(b"http://other/b?c=d"), OK),
    ("an absolute target without path", get(b"http://other"), OK),
    ("an absolute target with a query only", get(b"http://other?c"), OK),
    ("an absolute target with a user", get(b"http://u@other/b"), BAD),
    ("an absolute target of ftp", get(b"ftp://other/b"), BAD),
    ("an absolute target with a bad port", get(b"http://other:x/b"), BAD),
    ("CONNECT", b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n" + SMUGGLED, "501"),
    ("CONNECT in HTTP/1.0", b"CONNECT a:80 HTTP/1.0\r\n\r\n" + SMUGGLED, "501"),
    ("OPTIONS *", get(b"*").replace(b"GET", b"OPTIONS"), "204"),
    ("OPTIONS of a host", get(b"http://other").replace(b"GET", b"OPTIONS"), "204"),
    ("GET *", get(b"*"), BAD),
    ("no Host", b"GET /a HTTP/1.1\r\n\r\n", BAD),
    ("no Host, behind a request", get() + b"GET /a HTTP/1.1\r\n\r\n", "200 400"),
    ("two Hosts", get(b"/a", b"Host: localhost"), BAD),
    ("two Hosts in HTTP/1.0", get(b"/a", b"Host: b", version=OLD), BAD),
    ("Host in a list", get().replace(b"localhost", b"a b"), BAD),
    ("Host with a path", get().replace(b"localhost", b"a/b"), BAD),
    ("Host with a user", get().replace(b"localhost", b"a@b"), BAD),
    ("Host with two ports", get().replace(b"localhost", b"a:1:2"), BAD),
    ("Host of IPv6", get().replace(b"localhost", b"[::1]:80"), OK),
    ("Host of broken IPv6", get().replace(b"localhost", b"[::1"), BAD),
    ("an empty Host", get().replace(b"localhost", b""), OK),
    # 5: fields.
    ("a folded value", get(b"/a", b"A: b", b" c"), BAD),
    ("a folded Content-Length", post(b"Content-Length:", b" 5", body=b"hello"), BAD),
    ("a folded Transfer-Encoding", post(b"Transfer-Encoding:", b" chunked", body=HELLO), BAD),
    ("a space before the colon", get(b"/a", b"A : b"), BAD),
    ("a space before the colon of Content-Length", post(b"Content-Length : 5", body=b"hello"), BAD),
    ("a space before the colon of Transfer-Encoding", post(CHUNKED.replace(b":", b" :")), BAD),
    ("a tab before the colon", get(b"/a", b"A\t: b"), BAD),
    ("no colon", get(b"/a", b"A"), BAD),
    ("no name", get(b"/a", b": b"), BAD),
    ("a NUL in a name", get(b"/a", b"A\0: b"), BAD),
    ("a bracket in a name", get(b"/a", b"A(: b"), BAD),
    ("bytes over 127 in a name", get(b"/a", b"A\xe9: b"), BAD),
    ("no space behind the colon", get(b"/a", b"A:b"), OK),
    ("spaces around a value", get(b"/a", b"A: \t b \t "), OK),
    ("an empty value", get(b"/a", b"A:"), OK),
    # 6.1: Transfer-Encoding.
    ("Content-Length, then chunked", chunked(b"0\r\n\r\n", LENGTH_5) + SMUGGLED, BAD),
    ("chunked, then Content-Length", post(LENGTH_5, CHUNKED, body=b"0\r\n\r\n" + SMUGGLED), BAD),
    ("chunked and an empty length", post(b"Content-Length:", CHUNKED, body=HELLO), BAD),
    ("gzip, chunked", post(b"Transfer-Encoding: gzip, chunked", body=HELLO + SMUGGLED), "501"),
    ("gzip and chunked", post(GZIP, CHUNKED, body=HELLO + SMUGGLED), "501"),
    ("chunked, gzip", post(b"Transfer-Encoding: chunked, gzip", body=HELLO + SMUGGLED), BAD),
    ("chunked twice", post(b"Transfer-Encoding: chunked, chunked", body=HELLO), BAD),
    ("chunked in two lines", post(CHUNKED, CHUNKED, body=HELLO), BAD),
    ("identity", post(b"Transfer-Encoding: identity", body=HELLO + SMUGGLED), BAD),
    ("xchunked", post(b"Transfer-Encoding: xchunked", body=HELLO + SMUGGLED), BAD),
    ("chunked with a word behind", post(b"Transfer-Encoding: chunked x", body=HELLO), BAD),
    ("chunked with a parameter", post(b"Transfer-Encoding: chunked;q=1", body=HELLO), BAD),
    ("chunked in quotes", post(b'Transfer-Encoding: "chunked"', body=HELLO), BAD),
    ("chunked behind a vertical tab", post(b"Transfer-Encoding: \x0bchunked", body=HELLO), BAD),
    ("an empty Transfer-Encoding", post(b"Transfer-Encoding:", body=SMUGGLED), BAD),
    ("CHUNKED", post(b"TRANSFER-ENCODING: CHUNKED", body=HELLO), OK),
    ("chunked in HTTP/1.0", post(CHUNKED, body=HELLO + SMUGGLED, version=OLD), BAD),
    # 6.2: Content-Length.
    ("two equal lengths", post(LENGTH_5, LENGTH_5, body=b"hello"), BAD),
    ("two lengths", post(LENGTH_5, b"Content-Length: 6", body=b"hello!"), BAD),
    ("a list of lengths", post(b"Content-Length: 5, 5", body=b"hello"), BAD),
    ("a list of different lengths", post(b"Content-Length: 5, 6", body=b"hello!"), BAD),
    ("length +5", post(b"Content-Length: +5", body=b"hello"), BAD),
    ("length -5", post(b"Content-Length: -5", body=b"hello"), BAD),
    ("length 0x5", post(b"Content-Length: 0x5", body=b"hello"), BAD),
    ("length 5.0", post(b"Content-Length: 5.0", body=b"hello"), BAD),
    ("length 1_0", post(b"Content-Length: 1_0", body=b"hello hell"), BAD),
    ("length 5 5", post(b"Content-Length: 5 5", body=b"hello"), BAD),
    ("length with other digits", post("Content-Length: ٥".encode(), body=b"hello"), BAD),
    ("no digits", post(b"Content-Length:", body=b""), BAD),
    ("length 005", post(b"Content-Length: 005", body=b"hello"), OK),
    ("length of 2^64 + 5", post(b"Content-Length: 18446744073709551621", body=b"hello"), BAD),
    ("length of 99 digits", post(b"Content-Length: " + b"9" * 99, body=b"hello"), BAD),
    ("length 0", post(b"Content-Length: 0"), OK),
    ("no length", post(), OK),
    ("a GET with a body", get(b"/a", INNER_LENGTH) + SMUGGLED, OK),
    ("an option of that name", post(b"Connection: content-length", LENGTH_5, body=b"hello"), OK),
    ("a body longer than its length", post(LENGTH_5, body=b"hello" + b"rubbish"), "200 400"),
    # 7.1: chunks.
    ("a chunk of 0x5", chunked(b"0x" + HELLO), BAD),
    ("a chunk of +5", chunked(b"+" + HELLO), BAD),
    ("a chunk of -5", chunked(b"-" + HELLO), BAD),
    ("a chunk of no digits", chunked(b"\r\nhello\r\n0\r\n\r\n"), BAD),
    ("a space before a size", chunked(b" " + HELLO), BAD),
    ("a space behind a size", chunked(b"5 \r\nhello\r\n0\r\n\r\n"), BAD),
    ("LF behind a size", chunked(b"5\nhello\r\n0\r\n\r\n"), BAD),
    ("CR behind a size", chunked(b"5\rhello\r\n0\r\n\r\n"), BAD),
    ("LF behind a chunk", chunked(b"5\r\nhello\n0\r\n\r\n"), BAD),
    ("nothing behind a chunk", chunked(b"5\r\nhello0\r\n\r\n"), BAD),
    ("a chunk longer than its size", chunked(b"5\r\nhello!\r\n0\r\n\r\n"), BAD),
    ("LF behind the last chunk", chunked(b"5\r\nhello\r\n0\n\r\n"), BAD),
    ("LF at the end", chunked(b"5\r\nhello\r\n0\r\n\n"), BAD),
    ("a chunk of 2^64 + 5", chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"), BAD),
    ("a chunk of 005", chunked(b"00" + HELLO), OK),
    ("a last chunk of 000", chunked(b"5\r\nhello\r\n000\r\n\r\n"), OK),
    ("chunk extensions", chunked(b'5;a;b=c;d="e;f"\r\nhello\r\n0;g\r\n\r\n'), OK),
    ("LF in an extension", chunked(b"5;a\nb\r\nhello\r\n0\r\n\r\n"), BAD),
    ("CR in an extension", chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"), BAD),
    ("a long extension", chunked(b"5;" + b"a" * 700_000 + b"\r\nhello\r\n0\r\n\r\n"), BAD),
    ("trailers", chunked(b"5\r\nhello\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n") + get(), "200 200"),
    ("a trailing Content-Length", chunked(b"0\r\nContent-Length: 5\r\n\r\n"), BAD),
    ("a trailing Transfer-Encoding", chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), BAD),
    ("a bad trailer", chunked(b"0\r\nX T: 1\r\n\r\n"), BAD),
    ("many trailers", chunked(b"0\r\n" + b"A: b\r\n" * 90_000 + b"\r\n"), BAD),
    # 9: connections.
    ("a request behind the last", get(b"/a", b"Connection: close") + SMUGGLED, OK),
    ("close among others", get(b"/a", b"Connection: x, Close") + SMUGGLED, OK),
    ("HTTP/1.0", get(version=OLD), OK),
    ("HTTP/1.0 without Host", b"GET /a HTTP/1.0\r\n\r\n", OK),
    ("HTTP/1.0 with a body", post(LENGTH_5, body=b"hello", version=OLD), OK),
    ("HTTP/1.0, keep-alive", get(b"/a", b"Connection: keep-alive", version=OLD) + SMUGGLED, OK),
    # RFC 9110 7.8: Upgrade.
    ("h2c", get(b"/a", *UPGRADE, b"HTTP2-Settings: AAMAAABkAAQAAP__"), OK),
    ("h2c with a body", post(*UPGRADE, LENGTH_5, body=b"hello"), OK),
    ("h2c with a body that is a request", post(*UPGRADE, INNER_LENGTH, body=SMUGGLED), OK),
    ("h2c with chunks", chunked(INNER_CHUNKS, *UPGRADE), OK),
    ("h2c, then a request", post(*UPGRADE, LENGTH_5, body=b"hello") + get(), "200 200"),
    ("h2c ten times", 10 * post(*UPGRADE, INNER_LENGTH, body=SMUGGLED), " ".join([OK] * 10)),
    ("h2c and close", post(*UPGRADE, LENGTH_5, b"Connection: close", body=b"hello") + SMUGGLED, OK),
    ("h2c in HTTP/1.0", post(*UPGRADE, LENGTH_5, body=b"hello", version=OLD), OK),
    ("h2c with two lengths", post(*UPGRADE, LENGTH_5, CHUNKED, body=HELLO), BAD),
    ("h2c without Host", b"GET /a HTTP/1.1\r\n%s\r\n%s\r\n\r\n" % UPGRADE, BAD),
    ("h2c with bad chunks", chunked(b"x" + HELLO, *UPGRADE), BAD),
    ("websocket", get(b"/a", *WEBSOCKET) + get(), "200 200"),
    ("websocket with a body", post(*WEBSOCKET, INNER_LENGTH, body=SMUGGLED), OK),
    ("TLS/1.0", post(*TLS, INNER_LENGTH, body=SMUGGLED), OK),
    ("Upgrade without Connection", post(b"Upgrade: h2c", INNER_LENGTH, body=SMUGGLED), OK),
    ("Connection without Upgrade", post(b"Connection: Upgrade", INNER_LENGTH, body=SMUGGLED), OK),
    ("h2c and 100-continue", post(*UPGRADE, b"Expect: 100-continue", LENGTH_5, body=b"hello"), OK),
    # RFC 9110 10.1.1: Expect.
    ("100-continue with the body", post(b"Expect: 100-continue", LENGTH_5, body=b"hello"), OK),
    ("100-Continue without a body", get(b"/a", b"Expect: 100-Continue"), OK),
    ("an unknown expectation", post(b"Expect: 200-ok", LENGTH_5, body=b"hello"), "417"),
    ("one expectation of two", post(b"Expect: 100-continue, x", LENGTH_5, body=b"hello"), "417"),
    ("an expectation in HTTP/1.0", post(b"Expect: x", LENGTH_5, body=b"hello", version=OLD), OK),
]  # fmt: skip

TABLE = [Raw(name, sent, tuple(statuses.split())) for name, sent, statuses in _TABLE]
