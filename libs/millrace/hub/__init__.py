"""Models: the catalogue, fetching, importing and how much memory they need."""

from .catalog import DEFAULT_ALIAS, DEFAULT_MODEL, resolve_model
from .entry import ModelEntry

__all__ = ["DEFAULT_ALIAS", "DEFAULT_MODEL", "ModelEntry", "resolve_model"]
