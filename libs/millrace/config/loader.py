"""One declaration per setting: a frozen dataclass becomes flags, variables, file keys and help.

Precedence: `--field-name`, then `MILLRACE_<SERVICE>_<FIELD>`, then the table `[service]` of one
TOML file, then the default. The file is the one that `--config` or MILLRACE_CONFIG names, else
`config.toml` in MILLRACE_HOME if it is there. What may hold a password is a `Secret` or a `Url`,
which no error and no listing quotes.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
import textwrap
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from millrace.core.errors import ConfigError

from .environment import current_environment
from .help_format import HelpFormatter
from .home import millrace_home
from .service_links import without_service_links
from .values import (
    format_value,
    is_secret,
    parse_text,
    parse_toml,
    split_optional,
    type_label,
)

T = TypeVar("T")

ENV_PREFIX = "MILLRACE_"
TABLES = ("up", "bus", "gateway", "tokenizer", "scheduler", "worker", "cache", "collector")
# Variables of no service.
SHARED_VARIABLES = (
    *("MILLRACE_HOME", "MILLRACE_CONFIG", "MILLRACE_LOG_LEVEL", "MILLRACE_LOG_FORMAT"),
    *("MILLRACE_DEBUG",),
    *("MILLRACE_MODEL", "MILLRACE_TEST_EXAMPLES"),
)
# Until 0.1 the settings file was called so.
FORMER_FILE = "millrace.toml"
_METADATA_KEY = "millrace.setting"

HELP_WIDTH = 79


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """What a declaration says beside type and default.

    `unset` tells what the value that means "none given" stands for; `inherits` names the setting,
    such as gateway.http_port, that holds instead then.
    """

    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    unset: str = ""
    inherits: str = ""


@dataclass(frozen=True, slots=True)
class SettingValue:
    """A setting's value in force and where it comes from: flag, env, file or default."""

    name: str
    value: Any
    origin: str
    env: str
    flag: str
    hint: Any
    doc: SettingDoc

    @property
    def text(self) -> str:
        """The value as text; what is secret in it is hidden."""
        return format_value(self.value)

    @property
    def is_unset(self) -> bool:
        """True for the value that means "none given"."""
        return self.value in (None, "", 0) and not isinstance(self.value, bool)


@dataclass(frozen=True, slots=True)
class _Setting:
    name: str
    hint: Any
    doc: SettingDoc
    default: Any
    service: str

    @property
    def env(self) -> str:
        return f"{ENV_PREFIX}{self.service}_{self.name}".upper().replace("-", "_")

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def setting(
    default: Any = MISSING,
    *,
    help: str,
    unit: str = "",
    choices: tuple[str, ...] = (),
    unset: str = "",
    inherits: str = "",
    default_factory: Callable[[], Any] | None = None,
) -> Any:
    """Declares a field of a settings dataclass."""
    metadata = {_METADATA_KEY: SettingDoc(help, unit, choices, unset, inherits)}
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load_config(
    cls: type[T],
    service: str,
    argv: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    prog: str | None = None,
) -> T:
    """Builds `cls` from flags, environment, file and defaults; `--help` prints and exits.

    `argv` None takes the process's own. Raises `ConfigError` naming the setting and the nearest
    known name or the allowed values.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = _Parser(prog=prog or f"python -m millrace.{service}", description=cls.__doc__)
    add_flags(parser, cls, service)
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [item.flag for item in _settings(cls, service)] + ["--config", "--help"]
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            # Not quoted: it may be the value of a flag with a blank in it.
            raise ConfigError("an argument that is no flag; every setting is given as --flag value")
        raise ConfigError(_unknown("flag", flag, flags))
    return config_from_flags(cls, service, namespace, environ=environ)


def explain_config(
    cls: type[Any],
    service: str,
    argv: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> list[SettingValue]:
    """Every setting with its value and origin; `argv` None means no flags."""
    parser = _Parser(add_help=False)
    add_flags(parser, cls, service)
    namespace = parser.parse_args(list(argv or ()))
    return _resolve(cls, service, namespace, environ)


def declared_settings(cls: type[Any], service: str) -> list[SettingValue]:
    """Every setting with its default, whatever flags, environment and file say."""
    return [
        SettingValue(item.name, item.default, "default", item.env, item.flag, item.hint, item.doc)
        for item in _settings(cls, service)
    ]


def config_from_flags(
    cls: type[T],
    service: str,
    namespace: argparse.Namespace,
    *,
    environ: Mapping[str, str] | None = None,
) -> T:
    """As `load_config`, for flags that a parser with `add_flags` has read already."""
    values = _resolve(cls, service, namespace, environ)
    return cls(**{item.name: item.value for item in values})


def flags_as_variables(
    cls: type[Any], service: str, namespace: argparse.Namespace
) -> dict[str, str]:
    """The flags that were given, as the variables that mean the same.

    For a child process: anybody may read its arguments, only its user its environment.
    """
    given = {item.env: getattr(namespace, item.name, None) for item in _settings(cls, service)}
    return {name: text for name, text in given.items() if text is not None}


def add_flags(
    parser: argparse.ArgumentParser,
    cls: type[Any],
    service: str,
    *,
    inherited: Callable[[str], str] | None = None,
) -> None:
    """Adds `--config` and a flag per setting, and the table of them as the parser's help.

    `inherited` gives the default of a setting of another table, such as `worker.model`.
    """
    settings = _settings(cls, service)
    parser.formatter_class = HelpFormatter
    parser.epilog = _help_table(settings, inherited)
    parser.add_argument("--config", default=None, help=argparse.SUPPRESS)
    for item in settings:
        base, _ = split_optional(item.hint)
        if base is bool:
            parser.add_argument(
                item.flag, nargs="?", const="true", default=None, help=argparse.SUPPRESS
            )
            negated = "--no-" + item.flag[2:]
            parser.add_argument(
                negated, dest=item.name, action="store_const", const="false", help=argparse.SUPPRESS
            )
        else:
            parser.add_argument(item.flag, default=None, help=argparse.SUPPRESS)


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that a wrong flag is a `ConfigError` like everything else."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, usage="%(prog)s [--flag value ...]", **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _settings(cls: type[Any], service: str) -> list[_Setting]:
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        doc = field.metadata.get(_METADATA_KEY)
        if doc is None:
            raise TypeError(f"{cls.__name__}.{field.name} is not declared with setting()")
        type_label(hints[field.name])
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        found.append(_Setting(field.name, hints[field.name], doc, default, service))
    return found


def _resolve(
    cls: type[Any],
    service: str,
    namespace: argparse.Namespace,
    environ: Mapping[str, str] | None,
) -> list[SettingValue]:
    environ = without_service_links(current_environment() if environ is None else environ)
    settings = _settings(cls, service)
    _refuse_unknown_variables(settings, service, environ)
    path, table = _read_file(namespace.config, service, environ)
    if unknown := [key for key in table if key not in {item.name for item in settings}]:
        known = [item.name for item in settings]
        raise ConfigError(f"{path}: {_unknown(f'key of [{service}]', unknown[0], known)}")
    return [_resolve_one(item, namespace, environ, path, table) for item in settings]


def _resolve_one(
    item: _Setting,
    namespace: argparse.Namespace,
    environ: Mapping[str, str],
    path: Path | None,
    table: Mapping[str, Any],
) -> SettingValue:
    given = getattr(namespace, item.name, None)
    if given is not None:
        value, origin = _checked(item, item.flag, given, parse_text), "flag"
    elif item.env in environ:
        value, origin = _checked(item, item.env, environ[item.env], parse_text), "env"
    elif item.name in table:
        where = f"{path}: {item.service}.{item.name}"
        value, origin = _checked(item, where, table[item.name], parse_toml), "file"
    elif item.default is MISSING:
        raise ConfigError(f"{item.flag} (or {item.env}) is required: {item.doc.help}")
    else:
        value, origin = item.default, "default"
    return SettingValue(item.name, value, origin, item.env, item.flag, item.hint, item.doc)


def _checked(item: _Setting, where: str, raw: Any, parse: Callable[[Any, Any], Any]) -> Any:
    try:
        value = parse(raw, item.hint)
    except ValueError as exc:
        label = type_label(item.hint)
        if is_secret(item.hint):
            # Its words do not quote the value; a value of another kind has none.
            said = exc if isinstance(raw, str) else f"is not of the kind: {label}"
            raise ConfigError(f"{where} {said}", field=item.name) from None
        raise ConfigError(f"{where}: {raw!r} is not of the kind: {label}", field=item.name) from exc
    if item.doc.choices and value is not None:
        for single in value if isinstance(value, tuple) else (value,):
            if single not in item.doc.choices:
                allowed = ", ".join(item.doc.choices)
                raise ConfigError(f"{where}: {raw!r} is not one of {allowed}", field=item.name)
    return value


def _refuse_unknown_variables(
    settings: Sequence[_Setting], service: str, environ: Mapping[str, str]
) -> None:
    prefix = f"{ENV_PREFIX}{service}_".upper().replace("-", "_")
    known = [item.env for item in settings]
    for name in environ:
        if name.startswith(prefix) and name not in known:
            raise ConfigError(_unknown("variable", name, known))


def _read_file(
    named: str | None, service: str, environ: Mapping[str, str]
) -> tuple[Path | None, dict[str, Any]]:
    path = _file_to_read(named or environ.get("MILLRACE_CONFIG"), environ)
    if path is None:
        return None, {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path}: is not TOML: {exc}") from exc
    tables = sorted({*TABLES, service})
    for name, table in document.items():
        if name not in tables:
            raise ConfigError(f"{path}: {_unknown('table', name, tables)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} must be a table: [{name}]")
    return path, document.get(service, {})


def _file_to_read(named: str | None, environ: Mapping[str, str]) -> Path | None:
    if named:
        try:
            return Path(named).expanduser()
        except RuntimeError as exc:
            raise ConfigError(f"{named}: no such user has a home folder") from exc
    try:
        home = millrace_home(environ)
    except ConfigError:
        # Most services keep nothing at home; those that do find out themselves.
        return None
    try:
        if home.config_file.is_file():
            return home.config_file
        if (former := home.root / FORMER_FILE).is_file():
            raise ConfigError(f"{former} is not read any more; call it {home.config_file.name}")
    except OSError as exc:
        raise ConfigError(
            f"{home.config_file}: cannot be read: {exc.strerror}; "
            "set MILLRACE_HOME to a folder that this user may read"
        ) from exc
    return None


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown {kind} {name}{hint}"


def _help_table(settings: Sequence[_Setting], inherited: Callable[[str], str] | None = None) -> str:
    lines = ["settings, each with its default and its variable:"]
    for item in settings:
        choices = f" One of {', '.join(item.doc.choices)}." if item.doc.choices else ""
        is_switch = split_optional(item.hint)[0] is bool
        flag = item.flag.replace("--", "--[no-]", 1) if is_switch else item.flag
        text = f"{item.doc.help.rstrip('.')}.{choices} {item.env}"
        lines += _wrapped(f"  {flag:<26} ", _default_text(item, inherited))
        lines += _wrapped("      ", text[0].upper() + text[1:])
    lines += ["  --config FILE              config.toml in MILLRACE_HOME"]
    lines += ["      TOML file with a table per service. MILLRACE_CONFIG"]
    return "\n".join(lines)


def _wrapped(indent: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        HELP_WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _default_text(item: _Setting, inherited: Callable[[str], str] | None) -> str:
    """What holds without the setting, never just "none"."""
    if item.default is MISSING:
        return "required"
    if item.default in (None, "", 0) and not isinstance(item.default, bool):
        if item.doc.inherits:
            value = f"{inherited(item.doc.inherits)} " if inherited else ""
            return f"{value}({item.doc.inherits})"
        if item.doc.unset:
            return item.doc.unset
    unit = f" {item.doc.unit}" if item.doc.unit else ""
    return (format_value(item.default) or '""') + unit


def check_variables(environ: Mapping[str, str] | None = None) -> None:
    """Raises `ConfigError` for a MILLRACE_ variable that belongs to no service.

    A service's own variables are checked when its settings are read.
    """
    environ = without_service_links(current_environment() if environ is None else environ)
    prefixes = tuple(f"{ENV_PREFIX}{table.upper()}_" for table in TABLES)
    for name in environ:
        is_ours = name.startswith(ENV_PREFIX) and name not in SHARED_VARIABLES
        if is_ours and not name.startswith(prefixes):
            rest = name.removeprefix(ENV_PREFIX).partition("_")[2]
            known = [*SHARED_VARIABLES, *(prefix + rest for prefix in prefixes if rest)]
            raise ConfigError(_unknown("variable", name, known), field=name)
