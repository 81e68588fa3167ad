"""URLs in the hub client's variables."""

from __future__ import annotations

import pytest

from millrace.core.errors import ConfigError
from millrace.hub.hub_client import HubClient
from millrace.hub.hub_environment import require_readable_urls


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HF_ENDPOINT": "https://u:p@hub.example/mirror", "HTTPS_PROXY": ""},
        {"http_proxy": "proxy:3128"},
        {"https_proxy": "http://bob:hun%23ter2@proxy:3128", "ALL_PROXY": "socks5h://h:1"},
    ],
)
def test_what_can_be_read_is_fine(environ: dict[str, str]) -> None:
    require_readable_urls(environ)


@pytest.mark.parametrize(
    "name", ["HF_ENDPOINT", "http_proxy", "HTTPS_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"]
)
@pytest.mark.parametrize(
    "value", ["http://bob:hunter2#x@h", "http://bob:x@h:hunter2", "gopher://h"]
)
def test_what_cannot_be_read_is_named_before_the_client_quotes_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=name) as caught:
        HubClient("org/name")
    assert "hunter2" not in caught.value.message
