"""`make bench-claims`: each claim about Millrace with its figure and how it was measured.

Dynamic batching against one request at a time and against static batches, INT8 against FP32, and
the size of the batch. Takes about eight minutes, `--quick` one; the figures go to the terminal and
into bench-results/claims.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from millrace.hub.catalog import resolve_model

from .__main__ import MODEL, RESULTS
from .batching import measure_batching
from .kernels_here import kernels_here
from .progress import show_progress
from .quantization import measure_quantization
from .scale import FULL, QUICK, Scale

DECODE_CASES = ((1, 300), (8, 300), (32, 300))
Claims = list[dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        prog="make bench-claims", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--only", choices=sorted(PARTS), help="one part")
    parser.add_argument("--quick", action="store_true", help="a smoke test; its figures are rough")
    parser.add_argument("--output-dir", type=Path, help="for claims.json; bench-results by default")
    arguments = parser.parse_args(argv)
    scale = QUICK if arguments.quick else FULL
    claims: Claims = []
    for name, measure in PARTS.items():
        if arguments.only in (None, name):
            claims += measure(scale)
    _print(claims)
    default = RESULTS / "quick" if arguments.quick else RESULTS
    folder = arguments.output_dir or default
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "claims.json"
    path.write_text(json.dumps({"claims": claims}, indent=2) + "\n", "utf-8")
    print(f"\nWritten: {path}")


def _quantization(scale: Scale) -> Claims:
    model = resolve_model(MODEL).path
    kernels = kernels_here(model)
    if kernels is None:
        show_progress("INT8 against FP32 is left out: no C++ kernels here")
        return []
    cases = tuple(case for case in DECODE_CASES if case[0] <= max(scale.decode_cases)[0])
    return measure_quantization(model, kernels, replace(scale, decode_cases=cases))


def _print(claims: Claims) -> None:
    for claim in claims:
        print(f"\n{claim['claim']}\n  {claim['figure']}\n  how: {claim['how']}")


PARTS: dict[str, Callable[[Scale], Claims]] = {
    "batching": measure_batching,
    "quantization": _quantization,
}


if __name__ == "__main__":
    main()
