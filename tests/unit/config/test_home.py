"""Where state lives."""

from __future__ import annotations

from pathlib import Path

from millrace.config.home import millrace_home


def test_home_follows_millrace_home(tmp_path: Path) -> None:
    home = millrace_home({"MILLRACE_HOME": str(tmp_path), "XDG_DATA_HOME": "/elsewhere"})

    assert home.root == tmp_path
    assert home.models == tmp_path / "models"
    assert home.config_file == tmp_path / "millrace.toml"


def test_home_follows_xdg_data_home(tmp_path: Path) -> None:
    assert millrace_home({"XDG_DATA_HOME": str(tmp_path)}).root == tmp_path / "millrace"


def test_home_defaults_to_local_share(tmp_path: Path) -> None:
    root = millrace_home({"HOME": str(tmp_path)}).root

    assert root == tmp_path / ".local" / "share" / "millrace"
    assert not root.exists()
