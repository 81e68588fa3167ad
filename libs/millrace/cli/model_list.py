"""`millrace models list` and `available`: the models on this machine, and some to fetch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from millrace.config.home import Home
from millrace.core.errors import MillraceError
from millrace.core.own_command import own_command
from millrace.engine.default_sampling import default_sampling
from millrace.engine.generation_config import read_generation_config
from millrace.hub.available import AVAILABLE
from millrace.hub.byte_size import format_bytes
from millrace.hub.catalog import DEFAULT_ALIAS, folder_of, manifests, pull_command
from millrace.hub.entry import entry_of
from millrace.hub.manifest import Manifest
from millrace.hub.model_cache import packed_of

from .console import Console


def list_models(home: Home, *, as_json: bool) -> int:
    """Shows them with what they take on the disk. Returns the exit status."""
    console = Console()
    found = list(manifests(home))
    rows = [
        _listed(manifest, folder, [each for each in found if each[0] is not manifest], home)
        for manifest, folder in found
    ]
    if as_json:
        console.json(rows)
    elif not rows:
        console.line(f"no models yet; fetch the default one: {pull_command(DEFAULT_ALIAS)}")
    else:
        console.table(
            ("NAME", "ALIASES", "SIZE", "PACKED", "LICENCE", "MAX LEN", "SAMPLING", "ROUTE"),
            [
                (
                    row["name"],
                    ", ".join(row["aliases"]) or "-",
                    format_bytes(row["size_bytes"]),
                    format_bytes(row["packed_bytes"]) if row["packed_bytes"] else "-",
                    row["license"],
                    str(row["max_model_len"] or "-"),
                    _sampling(row["default_sampling"]),
                    f"{row['route']}: {row['refusal']}" if row["refusal"] else row["route"],
                )
                for row in rows
            ],
        )
    return 0


def list_available(*, as_json: bool) -> int:
    """Shows models that can be fetched. Returns the exit status."""
    console = Console()
    if as_json:
        console.json([asdict(each) for each in AVAILABLE])
        return 0
    console.table(
        ("NAME", "SIZE", "LICENCE", "ROUTE", "TESTED", ""),
        [
            (
                each.name,
                format_bytes(each.size_bytes),
                each.license + (", gated" if each.is_gated else ""),
                each.route,
                each.tested,
                each.text,
            )
            for each in AVAILABLE
        ],
    )
    console.line(
        "SIZE: what is fetched, rounded. TESTED: weights of it, or a small model of the same kind. "
        f"Fetch one: {own_command('models pull NAME')}; first, whether it fits: "
        f"{own_command('models fit NAME')}"
    )
    return 0


def _listed(
    manifest: Manifest, folder: Path, others: list[tuple[Manifest, Path]], home: Home
) -> dict[str, Any]:
    """One line of the list; a broken entry is shown as refused, so that it can be removed."""
    path = folder_of(manifest, folder)
    packed = packed_of(path, [folder_of(*other) for other in others], home)
    row: dict[str, Any] = {
        "name": manifest.name,
        "aliases": list(manifest.aliases),
        "source": manifest.source,
        "license": manifest.license,
        "size_bytes": manifest.size_bytes,
        "packed_bytes": sum(each.num_bytes for each in packed),
        "path": str(path),
        "revision": manifest.revision,
        "architecture": "",
        "route": "refused",
        "refusal": "",
        "max_model_len": 0,
        "default_sampling": {},
    }
    try:
        entry = entry_of(manifest, folder)
        defaults = default_sampling(read_generation_config(entry.path))
    except MillraceError as error:
        return row | {"refusal": error.message}
    return row | {
        "revision": entry.revision,
        "architecture": entry.architecture,
        "route": entry.route,
        "refusal": entry.refusal,
        "max_model_len": entry.max_model_len,
        "default_sampling": defaults.given(),
    }


def _sampling(defaults: dict[str, float]) -> str:
    """What holds if a request is silent, as far as the model has a wish."""
    return ", ".join(f"{name} {value:g}" for name, value in defaults.items()) or "-"
