"""The claim about INT8 against FP32: speed, size and what it costs in quality."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts import perplexity

from millrace.config.home import millrace_home
from millrace.engine.kernels.cpu.library import Kernels
from millrace.engine.kernels.cpu.packed_place import packed_path

from .engine import FLOAT32, VARIANTS, measure_engine
from .machine import MachineProbe
from .model_shapes import ModelShapes
from .progress import show_progress
from .scale import Scale

INT8 = next(variant for variant in VARIANTS if variant.name == "int8")
WINDOW_TOKENS = 1024


def measure_quantization(model: Path, kernels: Kernels, scale: Scale) -> list[dict[str, Any]]:
    """Speed and size, then quality."""
    figures = measure_engine(model, kernels, MachineProbe(kernels), scale, (FLOAT32, INT8))
    return [_speed(figures, scale), _size(model, kernels), _quality(model, scale)]


def _speed(figures: Sequence[dict[str, Any]], scale: Scale) -> dict[str, Any]:
    by_case: dict[str, dict[str, float]] = {}
    for row in figures:
        rows = f"{row['rows']} row{'s' if row['rows'] > 1 else ''} at {row['context']}"
        case = rows if row["what"] == "decode" else f"prefill of {row['context']}"
        by_case.setdefault(case, {})[row["weights"]] = row["tokens_per_s"]
    ratios = {case: rates["int8"] / rates["float32"] for case, rates in by_case.items()}
    texts = [
        f"{case}: {rates['int8']:.0f} against {rates['float32']:.0f} ({ratios[case]:.1f} times)"
        for case, rates in by_case.items()
    ]
    return {
        "claim": "INT8 against FP32, speed",
        "figure": "tokens/s, rows that decode at tokens of context: " + "; ".join(texts),
        "how": f"the engine alone, median of {scale.rounds} interleaved rounds",
        "tokens_per_s": by_case,
        "ratios": {case: round(ratio, 2) for case, ratio in ratios.items()},
    }


def _size(model: Path, kernels: Kernels) -> dict[str, Any]:
    shapes, cache_dir = ModelShapes.of(model), millrace_home().cache
    sizes = {
        kind: {
            "read_per_step_mb": round(shapes.weight_bytes(kernels, kind) / 1e6, 1),
            "mapped_file_mb": round(
                packed_path(cache_dir, model, kind, kernels.path).stat().st_size / 1e6, 1
            ),
        }
        for kind in ("float32", "int8")
    }
    checkpoint_mb = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e6
    read, file = (
        [sizes[kind][name] for kind in ("int8", "float32")]
        for name in ("read_per_step_mb", "mapped_file_mb")
    )
    return {
        "claim": "INT8 against FP32, size",
        "figure": (
            f"weights {read[0]} MB against {read[1]} MB ({read[1] / read[0]:.1f} times less); "
            f"the mapped file, with the table of embeddings, {file[0]} MB against {file[1]} MB; "
            f"the checkpoint on disk is {checkpoint_mb:.0f} MB"
        ),
        "how": "matrices as packed for the kernels, scales of INT8 included; sizes of the files",
        "sizes": sizes,
    }


def _quality(model: Path, scale: Scale) -> dict[str, Any]:
    reports = {}
    reference = millrace_home().cache / "bench-float32.npz"
    for variant in (FLOAT32, INT8):
        show_progress(f"perplexity of {variant.name} over {scale.perplexity_tokens} tokens")
        reports[variant.name] = perplexity.measure(
            _perplexity_arguments(model, variant.settings, scale.perplexity_tokens, reference)
        )
    reference.unlink()
    float32, int8 = reports["float32"], reports["int8"]
    return {
        "claim": "INT8 against FP32, loss",
        "figure": (
            f"perplexity {int8['perplexity']:.4f} against {float32['perplexity']:.4f}, "
            f"{int8['perplexity_change_percent']:+.3f} % "
            f"(± {int8['standard_error_percent']:.3f}); "
            f"the likeliest token is the same at {int8['top1_agreement_percent']:.1f} %"
        ),
        "how": (
            f"the first {int8['num_tokens']} tokens of the pinned text in windows of "
            f"{WINDOW_TOKENS} (scripts/perplexity.py; all of it takes minutes more)"
        ),
        "change_percent": round(int8["perplexity_change_percent"], 4),
        "top1_agreement_percent": round(int8["top1_agreement_percent"], 2),
    }


def _perplexity_arguments(
    model: Path, settings: dict[str, str], num_tokens: int, reference: Path
) -> argparse.Namespace:
    is_reference = settings == FLOAT32.settings
    engine = {**settings, "backend": "cpu", "cache_dir": millrace_home().cache}
    return argparse.Namespace(
        model=str(model),
        text=perplexity.TEXT,
        set=list(engine.items()),
        window_tokens=min(WINDOW_TOKENS, num_tokens),
        rows=1,
        chunk_tokens=256,
        max_tokens=num_tokens,
        save=reference if is_reference else None,
        reference=None if is_reference else reference,
    )
