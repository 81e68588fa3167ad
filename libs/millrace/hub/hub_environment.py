"""The variables by which the hub's client is told where and how, read before it reads them.

It quotes parts of a URL that it cannot read, and those may be a password.
"""

from __future__ import annotations

from collections.abc import Mapping

from millrace.core.errors import ConfigError
from millrace.core.url import HttpUrl, ProxyUrl, Url

_KINDS: dict[str, type[Url]] = {
    "HF_ENDPOINT": HttpUrl,
    **{name: ProxyUrl for name in ("http_proxy", "https_proxy", "all_proxy")},
}


def require_readable_urls(environ: Mapping[str, str]) -> None:
    """Raises `ConfigError` naming the variable whose URL cannot be read, without the URL."""
    for name, kind in _KINDS.items():
        for spelled in {name, name.upper()}:
            value = environ.get(spelled, "").strip()
            # A proxy may be named by host and port alone.
            text = value if "://" in value or kind is HttpUrl else f"http://{value}"
            try:
                if value:
                    kind(text)
            except ValueError as error:
                raise ConfigError(f"{spelled} {error}", field=spelled) from None
