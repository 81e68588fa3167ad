"""The settings that a running stack was started with, for `millrace config show --running`."""

from __future__ import annotations

import json
import os
from typing import Any

from millrace.config.home import Home

FILE_NAME = "settings.json"
# By process: what `config show --json` prints of each setting.
StackSettings = dict[str, list[dict[str, Any]]]


def write_settings_file(home: Home, settings: StackSettings) -> None:
    """Replaces the file; only its owner may read it."""
    path = home.run / FILE_NAME
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(settings, file, indent=2)


def read_settings_file(home: Home) -> StackSettings:
    """What was written; empty if nothing was, or by another version."""
    try:
        document: StackSettings = json.loads((home.run / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document
