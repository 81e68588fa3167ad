"""Where Millrace keeps its state: one folder, named by MILLRACE_HOME."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from millrace.core.errors import ConfigError

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
        """The settings file that is read if no other is named."""
        return self.root / "config.toml"

    def require_writable(self, folders: Iterable[Path]) -> None:
        """Makes nothing. Raises `ConfigError` naming a folder that cannot be made or written."""
        for folder in folders:
            nearest = folder
            while not os.path.lexists(nearest):
                nearest = nearest.parent
            if not os.path.isdir(nearest):
                raise ConfigError(self.failure("write", nearest, "it is no folder"))
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise ConfigError(self.failure("write", folder, _refusal(nearest)))

    def failure(self, verb: str, path: Path, reason: str) -> str:
        """What cannot be done with a path of this home, and the way out."""
        return (
            f"cannot {verb} {path}: {reason}; MILLRACE_HOME is {self.root}, set it to a folder "
            "that this user may read and write"
        )


def millrace_home(environ: Mapping[str, str] | None = None) -> Home:
    """MILLRACE_HOME, else `millrace` in the XDG data folder, else ~/.local/share/millrace.

    Raises `ConfigError` if nothing says where this user's files are.
    """
    environ = current_environment() if environ is None else environ
    try:
        return Home(_root(environ).absolute())
    except RuntimeError as error:
        # No HOME and no entry in the user database, or `~name` of a user that is not there.
        raise ConfigError(
            f"no home folder is known for this user (uid {os.getuid()}); "
            "set MILLRACE_HOME to a folder that it may write"
        ) from error
    except FileNotFoundError as error:
        raise ConfigError(
            "the current folder does not exist any more and MILLRACE_HOME is relative to it; "
            "set MILLRACE_HOME to a whole path"
        ) from error


def _refusal(folder: Path) -> str:
    is_read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return os.strerror(errno.EROFS if is_read_only else errno.EACCES)


def _root(environ: Mapping[str, str]) -> Path:
    if named := environ.get("MILLRACE_HOME"):
        return Path(named).expanduser()
    if data_home := environ.get("XDG_DATA_HOME"):
        return Path(data_home).expanduser() / "millrace"
    user_home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    return user_home / ".local" / "share" / "millrace"
