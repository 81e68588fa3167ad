"""Web pages of other origins (CORS), and names that are not ours (DNS rebinding)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from millrace.core.errors import ConfigError
from millrace.gateway.config import GatewayConfig
from millrace.gateway.http.app import create_app
from millrace.gateway.http.hosts import AllowedHosts
from millrace.gateway.http.origins import AllowedOrigins
from tests.unit.gateway.raw_client import one, served
from tests.unit.gateway.raw_requests import get

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
PAGE = "http://localhost:3000"
FOREIGN = "https://evil.example"


def origins(*entries: str, is_loopback: bool = True) -> AllowedOrigins:
    return AllowedOrigins.parse(entries, is_loopback=is_loopback)


@pytest.mark.parametrize(
    ("entries", "origin", "is_allowed"),
    [
        (["loopback"], "http://localhost:3000", True),
        (["loopback"], "https://localhost", True),
        (["loopback"], "http://127.0.0.1:5173", True),
        (["loopback"], "http://[::1]:5173", True),
        (["loopback"], "http://LOCALHOST:3000", True),
        (["loopback"], "http://localhost.evil.example", False),
        (["loopback"], "http://localhost:3000.evil.example", False),
        (["loopback"], "http://evil.example/http://localhost:3000", False),
        (["loopback"], "http://127.0.0.1.evil.example:80", False),
        (["loopback"], "http://u@localhost:3000", False),
        (["loopback"], "file://localhost", False),
        (["loopback"], "null", False),
        (["loopback"], "", False),
        ([], "http://localhost:3000", False),
        (["https://app.example"], "https://app.example", True),
        (["https://app.example"], "https://app.example:443", True),
        (["https://app.example:443"], "https://app.example", True),
        (["https://app.example"], "https://app.example:444", False),
        (["https://app.example"], "http://app.example", False),
        (["https://app.example"], "https://my.app.example", False),
        (["https://app.example:*"], "https://app.example:444", True),
        (["chrome-extension://abc"], "chrome-extension://abc", True),
        (["tauri://localhost"], "tauri://localhost", True),
        (["null"], "null", True),
        (["*"], "https://anything.example", True),
        (["*"], "null", True),
    ],
)
def test_origin_is_allowed(entries: list[str], origin: str, is_allowed: bool) -> None:
    assert origins(*entries).allows(origin) is is_allowed


def test_default_allows_pages_of_this_machine_on_loopback_only() -> None:
    assert GatewayConfig().origins().allows(PAGE)
    assert not GatewayConfig(host="0.0.0.0", insecure_bind=True).origins().allows(PAGE)


@pytest.mark.parametrize("entry", ["app.example", "https://", "https://a/b", "https://*.a", "a b"])
def test_setting_that_is_no_origin_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        GatewayConfig(cors_origins=(entry,)).check()


@pytest.mark.parametrize(
    ("names", "is_loopback", "host", "is_allowed"),
    [
        ([], True, "localhost", True),
        ([], True, "localhost:8080", True),
        ([], True, "LocalHost.", True),
        ([], True, "app.localhost:1", True),
        ([], True, "127.0.0.1:8080", True),
        ([], True, "[::1]:8080", True),
        ([], True, "192.168.1.5", True),
        ([], True, "", True),
        ([], True, "evil.example", False),
        ([], True, "localhost.evil.example", False),
        ([], True, "127.0.0.1.evil.example", False),
        ([], True, "evil.example:8080", False),
        ([], True, "xlocalhost", False),
        (["llm.lan"], True, "llm.lan:8080", True),
        (["LLM.lan"], True, "llm.LAN", True),
        (["llm.lan"], True, "evil.example", False),
        (["*"], True, "evil.example", True),
        ([], False, "evil.example", True),
        (["llm.lan"], False, "evil.example", False),
        (["llm.lan"], False, "localhost", True),
    ],
)
def test_host_is_allowed(names: list[str], is_loopback: bool, host: str, is_allowed: bool) -> None:
    assert AllowedHosts.of(names, is_loopback=is_loopback).allows(host) is is_allowed


@pytest.mark.parametrize("name", ["http://a", "a:80", "a/b", ""])
def test_setting_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts"):
        GatewayConfig(allowed_hosts=(name,)).check()


@pytest.fixture
async def client(gateway: Harness) -> httpx.AsyncClient:
    """Of a gateway as it is by default, asked by its address."""
    config = GatewayConfig()
    edge = replace(gateway.edge, hosts=config.hosts(), origins=config.origins())
    transport = httpx.ASGITransport(create_app(edge), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080")


def check_readable(reply: httpx.Response) -> None:
    """By the page, with every header of ours."""
    assert reply.headers["access-control-allow-origin"] == PAGE
    exposed = reply.headers["access-control-expose-headers"]
    assert {"x-request-id", "traceresponse", "*"} <= set(exposed.split(", "))
    assert "access-control-allow-credentials" not in reply.headers
    assert "origin" in reply.headers["vary"]


def check_hidden(reply: httpx.Response) -> None:
    assert not [name for name in reply.headers if name.startswith("access-control-")]
    assert "evil" not in str(reply.headers)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", CHAT, HI, 200),
        ("POST", CHAT, {**HI, "stream": True}, 200),
        ("POST", CHAT, {**HI, "n": 0}, 400),
        ("POST", CHAT, {**HI, "model": "nope"}, 404),
        ("GET", "/v1/models", None, 200),
        ("HEAD", "/v1/models", None, 200),
        ("GET", "/nowhere", None, 404),
        ("DELETE", "/v1/models", None, 405),
        ("GET", "/health", None, 200),
    ],
)
async def test_replies_and_errors_are_readable_by_allowed_pages_only(
    client: httpx.AsyncClient, method: str, path: str, body: object, status: int
) -> None:
    async with client:
        for origin, check in ((PAGE, check_readable), (FOREIGN, check_hidden)):
            reply = await client.request(method, path, json=body, headers={"origin": origin})
            assert reply.status_code == status
            assert reply.headers["vary"] == "origin"
            check(reply)
        check_hidden(await client.request(method, path, json=body))


async def test_defect_is_readable_too(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("millrace.gateway.http.openai_chat.chat_reply", break_down)
    async with client:
        reply = await client.post(CHAT, json=HI, headers={"origin": PAGE})
    assert reply.status_code == 500
    check_readable(reply)


PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,X-Stainless-OS, bad name",
}


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/nowhere"])
async def test_preflight_of_an_allowed_page(client: httpx.AsyncClient, path: str) -> None:
    async with client:
        reply = await client.options(path, headers={"origin": PAGE, **PREFLIGHT})
    assert (reply.status_code, reply.content) == (204, b"")
    check_readable(reply)
    assert "POST" in reply.headers["access-control-allow-methods"].split(", ")
    allowed = reply.headers["access-control-allow-headers"].split(", ")
    assert {
        *("authorization", "content-type", "idempotency-key", "x-request-id", "traceparent"),
        "x-stainless-os",
    } == set(allowed)
    assert int(reply.headers["access-control-max-age"]) > 0


@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://localhost.evil.example"])
async def test_preflight_of_a_foreign_page_says_which_setting(
    client: httpx.AsyncClient, origin: str
) -> None:
    async with client:
        reply = await client.options(CHAT, headers={"origin": origin, **PREFLIGHT})
    assert reply.status_code == 403
    check_hidden(reply)
    assert "cors_origins" in reply.json()["error"]["message"]


async def test_options_without_preflight_is_as_before(client: httpx.AsyncClient) -> None:
    async with client:
        reply = await client.options(CHAT, headers={"origin": PAGE})
    assert reply.status_code == 405


async def test_any_page_is_allowed_without_naming_it(gateway: Harness) -> None:
    gateway.edge = replace(gateway.edge, origins=origins("*"))
    async with gateway.client() as client:
        reply = await client.get("/v1/models", headers={"origin": FOREIGN})
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize("path", ["/model/info", CHAT, "/health", "/nowhere"])
async def test_name_that_is_not_ours_is_421(client: httpx.AsyncClient, path: str) -> None:
    headers = {"host": "evil.example", "origin": "http://evil.example"}
    async with client:
        reply = await client.post(path, json=HI, headers=headers)
    assert reply.status_code == 421
    assert "allowed_hosts" in reply.json()["error"]["message"]
    assert "access-control-allow-origin" not in reply.headers
    assert len(reply.headers["x-request-id"]) == 32


async def test_absolute_target_names_the_host(gateway: Harness) -> None:
    """RFC 9112 3.2.2: it goes before the Host field."""
    edge = replace(gateway.edge, hosts=GatewayConfig().hosts())
    async with served(create_app(edge)) as address:
        foreign = await one(address, get(b"http://evil.example/health"))
        ours = await one(
            address, get(b"http://localhost/health").replace(b"Host: localhost", b"Host: a.b")
        )
    assert (foreign.status, ours.status) == (421, 200)
