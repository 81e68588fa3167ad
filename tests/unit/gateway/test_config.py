"""The gateway's settings."""

from __future__ import annotations

import pytest

from millrace.config.loader import load_config
from millrace.core.errors import ConfigError
from millrace.gateway.config import GatewayConfig


def load(*argv: str, **environ: str) -> GatewayConfig:
    return load_config(GatewayConfig, "gateway", argv, environ={"HOME": "/nowhere", **environ})


def test_defaults_are_loopback_and_the_documented_ports() -> None:
    config = load()
    config.check()

    assert (config.host, config.http_port, config.grpc_port) == ("127.0.0.1", 8080, 50051)
    assert config.default_timeout_s == 600


def test_variables_set_the_addresses() -> None:
    config = load(MILLRACE_GATEWAY_TOKENIZER_ADDRESSES="a:1,b:2", MILLRACE_GATEWAY_HTTP_PORT="0")

    assert config.tokenizer_addresses == ("a:1", "b:2")
    assert config.http_port == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_binding_beyond_loopback_needs_the_flag(host: str) -> None:
    with pytest.raises(ConfigError, match="--insecure-bind"):
        load("--host", host).check()

    load("--host", host, "--insecure-bind").check()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_flag(host: str) -> None:
    load("--host", host).check()


@pytest.mark.parametrize(
    "argv",
    [
        ["--default-timeout-s", "3601"],
        ["--max-buffered-events", "0"],
        ["--max-in-flight", "0"],
        ["--tokenizer-addresses", ""],
    ],
)
def test_value_that_cannot_work_is_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError):
        load(*argv).check()
