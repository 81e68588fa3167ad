"""All settings as documents, made from their declarations: a TOML file and a page of the manual."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from millrace.config.loader import SettingValue, declared_settings
from millrace.config.values import format_value, none_word, split_optional
from millrace.core.url import Url

from .service_settings import find_settings, settings_names
from .stack.topology import Topology

WIDTH = 96
_TOML_HEAD = """\
Settings of Millrace: a flag beats a variable, MILLRACE_<TABLE>_<SETTING>, and that beats this file.
Take the # off a setting to change it; what is commented out is the default, or an example.
"""
_PAGE_HEAD = """\
# Settings

Made from the declarations by `scripts/settings_page.py`; a test compares.

A flag (`--http-port 8081`) beats a variable (`MILLRACE_GATEWAY_HTTP_PORT=8081`), and that beats the
settings file: one table per heading below, here `http_port = 8081` under `[gateway]`. The file is
the one that `--config` or `MILLRACE_CONFIG` names, else `config.toml` in `MILLRACE_HOME`;
`millrace config init` writes one with everything commented out. What `millrace up --config FILE`
names is for its services too. `millrace config show` tells every value and where it comes from,
with `--running` those that the running stack was started with.

URLs may hold a user and a password, percent-encoded. They are shown without it everywhere. Give
them by variable or file: every user of a machine can read the arguments of its processes.

Variables of no table: `MILLRACE_HOME` (all state), `MILLRACE_CONFIG`, `MILLRACE_LOG_LEVEL`,
`MILLRACE_LOG_FORMAT` (text or json), `MILLRACE_DEBUG=1` (tracebacks of the command), and
OpenTelemetry's `OTEL_*` ([architecture.md](architecture.md#telemetry)). Those by which Kubernetes
tells of Services, such as `MILLRACE_CACHE_SERVICE_HOST` and `MILLRACE_CACHE_PORT=tcp://...`, are
recognised and skipped.
"""


def toml_document(topology: Topology) -> str:
    """A settings file in which everything is commented out."""
    lines = _comment(_TOML_HEAD)
    for name in settings_names(topology):
        cls = find_settings(topology, name)
        lines += ["", f"[{name}]", *_comment(_summary(cls))]
        for item in declared_settings(cls, name):
            lines += [
                "",
                *_comment(_description(item, has_default=False)),
                f"#{item.name} = {_example(topology, item)}",
            ]
    return "\n".join(lines) + "\n"


def markdown_document(topology: Topology) -> str:
    """The page docs/settings.md."""
    parts = [_PAGE_HEAD]
    for name in settings_names(topology):
        cls = find_settings(topology, name)
        rows = [_row(item) for item in declared_settings(cls, name)]
        head = f"## {name}\n\n{_summary(cls)}\n\n| setting | default | |\n|---|---|---|\n"
        parts.append(head + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _default_text(item: SettingValue) -> str:
    """With what stands behind it: `8080`, `0 (sized by memory)`, `none (worker.model)`."""
    text = item.text or '""'
    if item.is_unset and (meaning := item.doc.inherits or item.doc.unset):
        return f"{text} ({meaning})"
    return f"{text} {item.doc.unit}" if item.doc.unit else text


def _row(item: SettingValue) -> str:
    meaning = _description(item, has_default=True).replace("|", "\\|")
    return f"| `{item.name}` | {_default_text(item)} | {meaning} |"


def _description(item: SettingValue, *, has_default: bool) -> str:
    """`has_default`: the default stands beside it, with its unit and what it means."""
    doc = item.doc
    notes = [doc.help[0].upper() + doc.help[1:].rstrip(".")]
    if doc.choices:
        notes.append(f"one of {', '.join(doc.choices)}")
    if doc.unset and not (has_default and item.is_unset):
        notes.append(f"{none_word(item.hint)}: {doc.unset}")
    if not has_default:
        notes += [f"in {doc.unit}"] if doc.unit else []
        notes += [f"if it is not given: {doc.inherits}"] if doc.inherits else []
    return "; ".join(notes) + "."


def _summary(cls: type[object]) -> str:
    return " ".join((cls.__doc__ or "").split())


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH, break_long_words=False)]


def _example(topology: Topology, item: SettingValue) -> str:
    """The default as TOML has it; for settings without one, a value that they may have."""
    if item.value is not None:
        return _toml(item.value)
    if item.doc.inherits:
        table, _, name = item.doc.inherits.partition(".")
        cls = find_settings(topology, table)
        return next(_toml(it.value) for it in declared_settings(cls, table) if it.name == name)
    base, _ = split_optional(item.hint)
    if isinstance(base, type) and issubclass(base, Url):
        return _toml(f"{base.SCHEMES[0]}://127.0.0.1")
    return _toml("/path/of/a/file" if base is Path else "")


def _toml(value: object) -> str:
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(format_value(value), ensure_ascii=False)
