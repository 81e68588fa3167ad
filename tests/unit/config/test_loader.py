"""Settings: precedence, origins, types, nearest names."""

from __future__ import annotations

import argparse
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest

from millrace.config.loader import (
    add_flags,
    check_variables,
    explain_config,
    flags_as_variables,
    load_config,
    setting,
)
from millrace.config.values import Host
from millrace.core.errors import ConfigError
from millrace.core.secret import Secret
from millrace.core.url import NatsUrl, RedisUrl


@dataclass(frozen=True)
class SampleConfig:
    """Settings of a sample."""

    host: str = setting("127.0.0.1", help="Where to listen.")
    port: int = setting(7000, help="Port to listen on.")
    ratio: float = setting(0.5, help="A share.")
    is_fast: bool = setting(False, help="Whether to hurry.")
    peers: tuple[str, ...] = setting((), help="Other processes.")
    folder: Path | None = setting(None, help="Where to keep things.")
    dtype: str = setting("auto", help="Number type.", choices=("auto", "float32"))
    wait_s: float = setting(default_factory=lambda: 2.5, help="How long.", unit="s")
    key: Secret = setting(Secret(""), help="A key.")


def load(argv: list[str], environ: dict[str, str] | None = None) -> SampleConfig:
    return load_config(
        SampleConfig, "gateway", argv, environ={"MILLRACE_HOME": "/nowhere", **(environ or {})}
    )


def test_defaults_hold_where_nothing_is_given() -> None:
    assert load([]) == SampleConfig()


def test_each_origin_beats_the_next(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[gateway]\nport = 1\nhost = 'file'\nratio = 1\n[worker]\nanything = 3\n")
    environ = {
        "MILLRACE_HOME": str(tmp_path),
        "MILLRACE_GATEWAY_PORT": "2",
        "MILLRACE_GATEWAY_HOST": "env",
    }

    values = explain_config(SampleConfig, "gateway", ["--port", "3"], environ=environ)

    found = {value.name: (value.value, value.origin) for value in values}
    assert found["port"] == (3, "flag")
    assert found["host"] == ("env", "env")
    assert found["ratio"] == (1.0, "file")
    assert found["is_fast"] == (False, "default")


@pytest.mark.parametrize(
    ("argv", "name", "expected"),
    [
        (["--ratio=0.25"], "ratio", 0.25),
        (["--is-fast"], "is_fast", True),
        (["--no-is-fast"], "is_fast", False),
        (["--is-fast", "off"], "is_fast", False),
        (["--peers", "a:1, b:2,"], "peers", ("a:1", "b:2")),
        (["--folder", "/x/y"], "folder", Path("/x/y")),
        (["--folder", "none"], "folder", None),
    ],
)
def test_text_becomes_the_declared_type(argv: list[str], name: str, expected: object) -> None:
    assert getattr(load(argv), name) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "many"], r"--port: 'many' is not of the kind: integer"),
        (["--is-fast", "perhaps"], r"--is-fast: 'perhaps' .* true or false"),
        (["--dtype", "int4"], r"--dtype: 'int4' is not one of auto, float32"),
        (["--prot", "1"], r"unknown flag --prot; did you mean --port\?"),
    ],
)
def test_a_wrong_flag_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(argv)


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="MILLRACE_GATEWAY_PROT; .*MILLRACE_GATEWAY_PORT"):
        load([], {"MILLRACE_GATEWAY_PROT": "1"})


def test_variables_of_other_services_are_left_alone() -> None:
    assert load([], {"MILLRACE_WORKER_X": "1", "MILLRACE_DEBUG": "1"}) == SampleConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gateway]\nprot = 1", r"unknown key of \[gateway\] prot; did you mean port\?"),
        ("[gatewy]\nport = 1", r"unknown table gatewy; did you mean gateway\?"),
        ("[gateway]\nport = true", "gateway.port: True is not of the kind: integer"),
        ("[gateway]\npeers = 'a'", "gateway.peers: 'a' is not of the kind: comma"),
        ("gateway = 1", "must be a table"),
        ("[gateway", "is not TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "other.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=message) as caught:
        load(["--config", str(path)])

    assert str(path) in caught.value.message


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load([], {"MILLRACE_CONFIG": str(tmp_path / "none.toml")})


def test_a_setting_without_default_is_required() -> None:
    @dataclass(frozen=True)
    class Needy:
        """Needs a name."""

        name: str = setting(help="What to call it.")

    with pytest.raises(ConfigError, match=r"--name \(or MILLRACE_CACHE_NAME\) is required"):
        load_config(Needy, "cache", [], environ={"MILLRACE_HOME": "/nowhere"})


def test_help_lists_flag_variable_default_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(["--help"])

    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert "--wait-s" in shown
    assert "MILLRACE_GATEWAY_WAIT_S" in shown
    assert "2.5 s" in shown


def test_a_secret_is_never_shown() -> None:
    environ = {"MILLRACE_HOME": "/nowhere", "MILLRACE_GATEWAY_KEY": "hush"}

    values = explain_config(SampleConfig, "gateway", environ=environ)

    (key,) = [value for value in values if value.name == "key"]
    assert key.value.reveal() == "hush"
    assert "hush" not in f"{key.text} {key!r}"


def test_variable_of_no_service_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"WORKR_DTYPE; did you mean MILLRACE_WORKER_DTYPE"):
        check_variables({"MILLRACE_WORKR_DTYPE": "float32"})


def test_variables_of_services_and_shared_ones_are_known() -> None:
    check_variables({"MILLRACE_WORKER_ANYTHING": "1", "MILLRACE_HOME": "/x", "PATH": "/bin"})


@dataclass(frozen=True)
class ServerConfig:
    """Settings with secrets."""

    host: Host = setting("127.0.0.1", help="Where to listen.")
    redis_url: RedisUrl = setting(RedisUrl("redis://h/0"), help="A server.")
    nats_url: NatsUrl | None = setting(None, help="Another one.", unset="none")
    key: Secret = setting(Secret(""), help="A key.")


def load_servers(argv: list[str], environ: dict[str, str] | None = None) -> ServerConfig:
    return load_config(
        ServerConfig, "cache", argv, environ={"MILLRACE_HOME": "/nowhere", **(environ or {})}
    )


@pytest.mark.parametrize("way", ["flag", "flag=", "variable", "file"])
@pytest.mark.parametrize("name", ["redis_url", "nats_url"])
def test_a_wrong_url_is_named_by_its_place_and_never_quoted(
    tmp_path: Path, name: str, way: str
) -> None:
    value = "nats://bob:hunter2#@h" if name == "nats_url" else "redis://:hunter2#@h"
    flag, variable = f"--{name.replace('_', '-')}", f"MILLRACE_CACHE_{name.upper()}"
    path = tmp_path / "config.toml"
    path.write_text(f"[cache]\n{name} = '{value}'\n")
    given: dict[str, tuple[list[str], dict[str, str], str]] = {
        "flag": ([flag, value], {}, flag),
        "flag=": ([f"{flag}={value}"], {}, flag),
        "variable": ([], {variable: value}, variable),
        "file": (["--config", str(path)], {}, f"{path}: cache.{name}"),
    }
    argv, environ, place = given[way]

    with pytest.raises(ConfigError) as caught:
        load_servers(argv, environ)

    assert caught.value.message.startswith(f"{place} can be read in two ways")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_secret_of_another_kind_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text("[cache]\nredis_url = ['hunter2']\n")

    with pytest.raises(ConfigError, match=r"cache.redis_url is not of the kind: URL") as caught:
        load_servers(["--config", str(path)])
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("argv", [["redis://:hunter2@h"], ["--key", "a", "hunter2"]])
def test_a_stray_argument_is_not_quoted(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match="no flag") as caught:
        load_servers(argv)
    assert "hunter2" not in caught.value.message


def test_a_config_can_be_shown_whole() -> None:
    config = load_servers(["--redis-url", "redis://:hunter2@h", "--key", "hunter2"])

    assert config.redis_url.password == config.key.reveal() == "hunter2"
    assert "hunter2" not in f"{config} {config!r}"


@pytest.mark.parametrize(
    ("text", "host"), [("[::1]", "::1"), ("::1", "::1"), (" localhost ", "localhost"), ("", "")]
)
def test_a_host_is_read_without_its_brackets(text: str, host: str) -> None:
    assert load_servers(["--host", text]).host == host
    assert load_servers([], {"MILLRACE_CACHE_HOST": text}).host == host


@pytest.mark.parametrize("text", ["127.0.0.1:80", "http://x", "a b", "x/y", "user@x"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not of the kind: host name or address"):
        load_servers(["--host", text])


def test_flags_become_the_variables_that_mean_the_same() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, SampleConfig, "gateway")
    argv = ["--port", "3", "--no-is-fast", "--peers=a,b"]

    environ = flags_as_variables(SampleConfig, "gateway", parser.parse_args(argv))

    assert load([], environ) == load(argv)
    assert set(environ) == {f"MILLRACE_GATEWAY_{name}" for name in ("PORT", "IS_FAST", "PEERS")}


@pytest.mark.parametrize("name", ["~nobody9/x.toml", "x\0y"])
def test_a_file_name_that_cannot_be_is_one_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"x.toml|x\Wy"):
        load(["--config", name])
