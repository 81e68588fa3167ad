"""Which engine route a model takes, decided once and remembered.

Deciding about the generic route imports transformers, which is too slow for every look at the
catalogue; so the answer is stored together with the version that gave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from .manifest import Manifest


def decided_by() -> str:
    """What an answer depends on besides config.json: the installed transformers."""
    try:
        return f"transformers {metadata.version('transformers')}"
    except metadata.PackageNotFoundError:
        return "no transformers"


def decide_route(config: Mapping[str, Any]) -> tuple[str, str]:
    """Route (native, generic or refused) and the reason of a refusal, as the engine sees it."""
    # Here, so that nothing of the engine is loaded to look up a known model.
    from millrace.engine.routes import route_of

    try:
        return route_of(config)
    except ModuleNotFoundError as error:
        return "refused", f"{error.name} is not installed: pip install 'millrace[engine]'"


def remembered_route(manifest: Manifest, config: Mapping[str, Any]) -> tuple[str, str]:
    """The written route, or a new decision where the installed transformers is another."""
    if manifest.route and (manifest.route == "native" or manifest.route_by == decided_by()):
        return manifest.route, manifest.refusal
    return decide_route(config)
