"""Where state lives, and what is said if that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from millrace.config.home import Home, millrace_home
from millrace.config.loader import load_config
from millrace.core.errors import ConfigError
from tests.unit.config.test_loader import SampleConfig


def test_home_follows_millrace_home(tmp_path: Path) -> None:
    home = millrace_home({"MILLRACE_HOME": str(tmp_path), "XDG_DATA_HOME": "/elsewhere"})

    assert home.root == tmp_path
    assert home.models == tmp_path / "models"
    assert home.config_file == tmp_path / "config.toml"


def test_home_follows_xdg_data_home(tmp_path: Path) -> None:
    assert millrace_home({"XDG_DATA_HOME": str(tmp_path)}).root == tmp_path / "millrace"


def test_home_defaults_to_local_share(tmp_path: Path) -> None:
    root = millrace_home({"HOME": str(tmp_path)}).root

    assert root == tmp_path / ".local" / "share" / "millrace"
    assert not root.exists()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME and without an entry in the user database."""

    def unknown(*args: object) -> None:
        raise KeyError(*args)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("pwd.getpwnam", unknown)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"MILLRACE_HOME": "~nobody9/x"}])
def test_a_user_without_home_is_told_the_way_out(nobody: None, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"uid \d+\); set MILLRACE_HOME"):
        millrace_home(environ)


def test_a_service_that_keeps_nothing_needs_no_home(nobody: None) -> None:
    assert load_config(SampleConfig, "gateway", [], environ={}) == SampleConfig()


def test_a_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(ConfigError, match="set MILLRACE_HOME to a whole path"):
        millrace_home({"MILLRACE_HOME": "relative"})


def test_a_file_in_the_way_is_named_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    home = Home(tmp_path / "home")

    with pytest.raises(ConfigError, match=rf"cannot write {home.root}: it is no folder; MILLRACE"):
        home.require_writable((home.logs,))


def test_a_folder_that_may_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    with pytest.raises(ConfigError, match=f"cannot write {home.logs}: Permission denied"):
        home.require_writable((home.logs,))
    assert not home.logs.exists()


def test_the_former_settings_file_is_not_ignored_in_silence(tmp_path: Path) -> None:
    (tmp_path / "millrace.toml").write_text("[gateway]\nport = 1\n")
    environ = {"MILLRACE_HOME": str(tmp_path)}

    with pytest.raises(ConfigError, match=r"millrace.toml is not read any more; call it config"):
        load_config(SampleConfig, "gateway", [], environ=environ)
    (tmp_path / "config.toml").write_text("[gateway]\nport = 2\n")
    assert load_config(SampleConfig, "gateway", [], environ=environ).port == 2
