"""The model that `up` serves: found, fetched where it is missing, refused where it cannot fit."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from millrace.cli.service_settings import explain_service
from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.core.errors import UnknownModel, UnsupportedModel
from millrace.hub.catalog import DEFAULT_ALIAS, DEFAULT_MODEL, looks_like_path, resolve_model
from millrace.hub.default_model import complete_default_model
from millrace.hub.entry import ModelEntry

from .options import ServedModel
from .topology import load_topology


def find_or_pull(model: str, home: Home) -> ModelEntry:
    """The model's entry; fetches it first where it is missing, with its progress on stderr.

    Raises what the hub raises, `UnsupportedModel` where it is refused.
    """
    if model in (DEFAULT_MODEL, DEFAULT_ALIAS):
        complete_default_model(home)
    try:
        entry = resolve_model(model, home)
    except UnknownModel:
        if looks_like_path(model):
            raise
        # Imported late: a second start needs nothing of it.
        from millrace.hub.pull import pull_model

        entry = pull_model(model, home, stream=sys.stderr)
    if entry.route == "refused":
        raise UnsupportedModel(f"{entry.name} cannot be served: {entry.refusal}")
    return entry


def require_fit(entry: ModelEntry, config: UpConfig, environ: Mapping[str, str]) -> None:
    """Raises `ConfigError` with the table and the nearest setting where it does not fit."""
    from millrace.hub.fit import check_fit

    worker = explain_service(load_topology(), "worker", environ)
    check_fit(
        entry,
        dtype=config.dtype or str(worker["dtype"].value),
        max_num_seqs=int(worker["max_num_seqs"].value),
        max_model_len=int(worker["max_model_len"].value),
        num_workers=config.workers,
        quantization=config.quantization or str(worker["quantization"].value),
        has_kernels=False if worker["backend"].value == "torch" else None,
    ).require()


def served_model(model: str, entry: ModelEntry) -> ServedModel:
    """A folder that nobody registered is passed on by its path, everything else by its name."""
    return ServedModel(str(entry.path) if looks_like_path(model) else entry.name, entry.name)
