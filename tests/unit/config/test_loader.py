"""Settings: precedence, origins, types, nearest names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from millrace.config.loader import check_variables, explain_config, load_config, setting
from millrace.core.errors import ConfigError


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
    key: str = setting("", help="A key.", secret=True)


def load(argv: list[str], environ: dict[str, str] | None = None) -> SampleConfig:
    return load_config(
        SampleConfig, "gateway", argv, environ={"MILLRACE_HOME": "/nowhere", **(environ or {})}
    )


def test_defaults_hold_where_nothing_is_given() -> None:
    assert load([]) == SampleConfig()


def test_each_origin_beats_the_next(tmp_path: Path) -> None:
    path = tmp_path / "millrace.toml"
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
    assert key.value == "hush"
    assert key.text == "********"


def test_variable_of_no_service_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"WORKR_DTYPE; did you mean MILLRACE_WORKER_DTYPE"):
        check_variables({"MILLRACE_WORKR_DTYPE": "float32"})


def test_variables_of_services_and_shared_ones_are_known() -> None:
    check_variables({"MILLRACE_WORKER_ANYTHING": "1", "MILLRACE_HOME": "/x", "PATH": "/bin"})
