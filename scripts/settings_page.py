"""Writes docs/settings.md anew from the declarations of all settings."""

from __future__ import annotations

from pathlib import Path

from millrace.cli.settings_document import markdown_document
from millrace.cli.stack.topology import load_topology

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

if __name__ == "__main__":
    PAGE.write_text(markdown_document(load_topology()), "utf-8")
