"""Where Millrace keeps its state: one folder, named by MILLRACE_HOME."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .environment import current_environment


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under MILLRACE_HOME. Nothing is created until somebody writes there."""

    root: Path

    @property
    def models(self) -> Path:
        """Converted checkpoints, one folder each."""
        return self.root / "models"

    @property
    def run(self) -> Path:
        """The run file of a started stack, and sockets."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.root / "logs"

    @property
    def cache(self) -> Path:
        """Whatever can be made or fetched again."""
        return self.root / "cache"

    @property
    def bin(self) -> Path:
        """Programs fetched or built for this machine."""
        return self.root / "bin"

    @property
    def data(self) -> Path:
        """What the started servers keep: the JetStream store."""
        return self.root / "data"

    @property
    def config_file(self) -> Path:
        """The settings file read where no other is named."""
        return self.root / "millrace.toml"


def millrace_home(environ: Mapping[str, str] | None = None) -> Home:
    """MILLRACE_HOME, else `millrace` in the XDG data folder, else ~/.local/share/millrace."""
    environ = current_environment() if environ is None else environ
    if named := environ.get("MILLRACE_HOME"):
        return Home(Path(named).expanduser().absolute())
    if data_home := environ.get("XDG_DATA_HOME"):
        return Home(Path(data_home).expanduser().absolute() / "millrace")
    user_home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    return Home(user_home / ".local" / "share" / "millrace")
