"""The settings that a running stack was started with, for `millrace config show --running`."""

from __future__ import annotations

import json
from typing import Any

from millrace.config.home import Home
from millrace.config.replaced_file import replace_file

FILE_NAME = "settings.json"
# By process: what `config show --json` prints of each setting.
StackSettings = dict[str, list[dict[str, Any]]]


def write_settings_file(home: Home, settings: StackSettings) -> None:
    """Replaces the file; only its owner may read it."""
    replace_file(home.run / FILE_NAME, json.dumps(settings, indent=2))


def read_settings_file(home: Home) -> StackSettings:
    """What was written; empty if nothing was, or by another version."""
    try:
        document: StackSettings = json.loads((home.run / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document
