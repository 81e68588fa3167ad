"""Where spans are sent to, as the OTEL_* variables say it, checked before anything starts.

OpenTelemetry specification, "OTLP exporter configuration" and "Environment variable specification":
a variable for traces beats the general one, an empty one counts as absent. What is asked for and
cannot be done is an error; values may be secrets, so errors quote none that could be one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from millrace.core.errors import ConfigError
from millrace.core.url import HttpUrl, basic_authorization

PREFIX = "OTEL_EXPORTER_OTLP_"
PROTOCOL = "http/protobuf"
GRPC_PORT = 4317
COMPRESSIONS = ("none", "gzip", "deflate")
LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
)
_TRACES_PATH = "/v1/traces"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """One OTLP/HTTP destination. `endpoint` is whole, path included; `headers` may hold secrets."""

    endpoint: HttpUrl
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    compression: str = "none"
    timeout_s: float | None = None
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""

    @property
    def shown(self) -> str:
        """The endpoint as logs name it."""
        if self.endpoint.port == GRPC_PORT:
            return f"{self.endpoint} (usually a gRPC port; traces are sent by {PROTOCOL})"
        return str(self.endpoint)


def why_off(environ: Mapping[str, str]) -> str:
    """The variable by which the user has switched traces off; empty if none does."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "OTEL_SDK_DISABLED=true"
    if environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return "OTEL_TRACES_EXPORTER=none"
    return ""


def read_export_settings(environ: Mapping[str, str]) -> ExportSettings | None:
    """The destination; None if none is named or traces are off. Raises `ConfigError`."""
    _require_limits(environ)
    if why_off(environ):
        return None
    _require_otlp(environ)
    endpoint = _endpoint(environ)
    if endpoint is None:
        return None
    return ExportSettings(
        endpoint,
        _headers(environ, endpoint),
        _compression(environ),
        _timeout_s(environ),
        *(_file(environ, name) for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")),
    )


def _require_limits(environ: Mapping[str, str]) -> None:
    """The SDK raises for them, some when it is imported."""
    for variable in LIMITS:
        value = environ.get(variable, "").strip()
        if value and not (value.isascii() and value.isdigit()):
            raise ConfigError(
                f"{variable} is {value!r}; it must be a whole number from 0", field=variable
            )


def _find(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable in force and its value; empty texts if there is none."""
    for variable in (f"{PREFIX}TRACES_{name}", PREFIX + name):
        if value := environ.get(variable, "").strip():
            return variable, value
    return "", ""


def _require_otlp(environ: Mapping[str, str]) -> None:
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "otlp"):
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER is {exporter!r}; Millrace knows otlp and none",
            field="OTEL_TRACES_EXPORTER",
        )
    variable, protocol = _find(environ, "PROTOCOL")
    if protocol not in ("", PROTOCOL):
        raise ConfigError(
            f"{variable} is {protocol!r}; Millrace sends traces by {PROTOCOL} alone, "
            "which collectors take on port 4318",
            field=variable,
        )


def _endpoint(environ: Mapping[str, str]) -> HttpUrl | None:
    variable, value = _find(environ, "ENDPOINT")
    if not value:
        return None
    if variable == f"{PREFIX}ENDPOINT":
        base, mark, query = value.partition("?")
        value = base.rstrip("/") + _TRACES_PATH + mark + query
    try:
        return HttpUrl(value)
    except ValueError as error:
        raise ConfigError(f"{variable} {error}", field=variable) from None


def _headers(environ: Mapping[str, str], endpoint: HttpUrl) -> dict[str, str]:
    """Those of the variable, and the credentials of the URL, which the client must not see."""
    headers = basic_authorization(endpoint)
    variable, value = _find(environ, "HEADERS")
    for number, entry in enumerate(value.split(","), 1):
        if not entry.strip():
            continue
        name, equals, text = entry.partition("=")
        name, text = unquote(name).strip().lower(), unquote(text).strip()
        if not equals or not _HEADER_NAME.fullmatch(name):
            raise ConfigError(
                f"entry {number} of {variable} is not name=value; "
                "a comma inside a value is written %2C",
                field=variable,
            )
        if not text.isprintable() or not text.isascii():
            raise ConfigError(
                f"the value of entry {number} of {variable} holds what no header may hold",
                field=variable,
            )
        headers[name] = text
    return headers


def _compression(environ: Mapping[str, str]) -> str:
    variable, value = _find(environ, "COMPRESSION")
    if value and value.lower() not in COMPRESSIONS:
        raise ConfigError(
            f"{variable} is {value!r}; it must be one of {', '.join(COMPRESSIONS)}", field=variable
        )
    return value.lower() or "none"


def _timeout_s(environ: Mapping[str, str]) -> float | None:
    variable, value = _find(environ, "TIMEOUT")
    if not value:
        return None
    try:
        timeout_s = float(value)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise ConfigError(f"{variable} is {value!r}; it must be a number over 0", field=variable)
    return timeout_s


def _file(environ: Mapping[str, str], name: str) -> str:
    variable, value = _find(environ, name)
    if value and not Path(value).is_file():
        raise ConfigError(f"{variable} names {value}, which is no file", field=variable)
    return value
