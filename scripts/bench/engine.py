"""The engine table: the model alone, step by step, as the worker runs it for greedy rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from millrace.config.home import millrace_home
from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission
from millrace.engine.batch import Work, build_batch
from millrace.engine.config import EngineConfig
from millrace.engine.kernels.cpu.library import TILE_TOKENS, Kernels
from millrace.engine.model_runner import ModelRunner
from millrace.engine.progress_text import only_last_steps
from millrace.engine.row import RowTable

from .case import Case
from .limits import Rates, speed_figures
from .machine import MachineProbe
from .model_shapes import ModelShapes
from .progress import show_progress
from .scale import Scale

PROMPT = Case("fill", 1, 512, 512)
COPIED_BLOCKS = 64
MAX_STEPS = 30


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of storing the model: settings of the engine, and the kinds of weights and K/V."""

    name: str
    settings: dict[str, str]
    weights: str
    kv: str


VARIANTS = (
    Variant("bfloat16", {"dtype": "bfloat16"}, "bfloat16", "bfloat16"),
    Variant("int8", {"quantization": "int8"}, "int8", "bfloat16"),
    Variant("int8, K/V too", {"quantization": "int8", "kv_dtype": "int8"}, "int8", "int8"),
    Variant("int4", {"quantization": "int4"}, "int4", "bfloat16"),
)
FLOAT32 = Variant("float32", {"dtype": "float32"}, "float32", "float32")


@dataclass(slots=True)
class Samples:
    """What the rounds gave for one case."""

    took_s: list[float] = field(default_factory=list)
    read_gb_per_s: list[float] = field(default_factory=list)
    multiply_tflops: list[float] = field(default_factory=list)


def cases_of(scale: Scale, max_positions: int) -> list[Case]:
    """Those that the model has positions for."""
    decodes = [Case("decode", rows, 1, context) for rows, context in scale.decode_cases]
    cases = [*decodes, Case("prefill", 1, scale.prefill_tokens, scale.prefill_tokens)]
    return [case for case in cases if case.context <= max_positions]


def measure_engine(
    model: Path,
    kernels: Kernels,
    probe: MachineProbe,
    scale: Scale,
    variants: Sequence[Variant] = VARIANTS,
) -> list[dict[str, Any]]:
    """One row per case and variant. Variants take turns within every round."""
    shapes = ModelShapes.of(model)
    cases = cases_of(scale, shapes.max_positions)
    sides = [(variant, LoadedModel(model, variant, cases)) for variant in variants]
    samples = {(case, variant.name): Samples() for case in cases for variant in variants}
    for number in range(scale.rounds):
        show_progress(f"engine: round {number + 1} of {scale.rounds}")
        for case in cases:
            for variant, side in sides:
                rates = probe.rates()
                found = samples[case, variant.name]
                found.took_s.append(side.step_s(case, scale.round_s))
                found.read_gb_per_s.append(rates.read_gb_per_s)
                found.multiply_tflops.append(rates.multiply_tflops)
    return [
        _figures(case, variant, samples[case, variant.name], kernels, shapes)
        for case in cases
        for variant in variants
    ]


def _figures(
    case: Case, variant: Variant, samples: Samples, kernels: Kernels, shapes: ModelShapes
) -> dict[str, Any]:
    took_s = median(samples.took_s)
    rates = Rates(median(samples.read_gb_per_s), median(samples.multiply_tflops))
    cost = shapes.step_cost(kernels, (variant.weights, variant.kv), case.lengths)
    return {
        "what": case.what,
        "weights": variant.name,
        "rows": case.num_rows,
        "context": case.context,
        "ms": round(took_s * 1e3, 2),
        "ms_of_rounds": [round(1e3 * one_s, 2) for one_s in samples.took_s],
        "tokens_per_s": round(case.num_rows * case.num_new / took_s, 1),
        **speed_figures(cost, took_s, rates),
    }


class LoadedModel:
    """A loaded model whose cache holds K/V of real tokens; no row ever moves on."""

    def __init__(self, model: Path, variant: Variant, cases: Sequence[Case]) -> None:
        show_progress(f"engine: loading {variant.name}")
        most_rows = max(case.num_rows for case in cases)
        self._longest = max(*(case.context for case in cases), PROMPT.context)
        self._num_context_blocks = max(*(case.num_blocks for case in cases), PROMPT.num_blocks)
        # The last blocks are for prefills, which must find theirs cleared.
        per_row = -(-self._longest // TILE_TOKENS)
        num_blocks = self._num_context_blocks + per_row
        self._runner = ModelRunner.load(
            EngineConfig(
                model_path=model,
                name=model.name,
                cache_dir=millrace_home().cache,
                backend="cpu",
                num_blocks=num_blocks,
                max_num_seqs=max(most_rows, -(-num_blocks // per_row)),
                max_model_len=self._longest,
                **variant.settings,  # type: ignore[arg-type]
            ),
            only_last_steps(show_progress),
        )
        self._ids = np.random.default_rng(0).integers(0, self._runner.info.vocab_size, 1 << 14)
        self._fill()

    def step_s(self, case: Case, seconds: float) -> float:
        """Median time of as many steps as fit into `seconds`, after one that warms up."""
        rows, work = self._rows(case)
        self._prepare(case)
        first_s = self._step_s(rows, work)
        count = max(1, min(MAX_STEPS, int(seconds / first_s)))
        times = []
        for _ in range(count):
            self._prepare(case)
            times.append(self._step_s(rows, work))
        return median(times)

    def _step_s(self, rows: RowTable, work: Sequence[Work]) -> float:
        started_s = time.perf_counter()
        batch = build_batch(work, rows, self._runner.cache.block_size)
        logits = self._runner.forward(batch)
        assert logits.likeliest is not None
        logits.likeliest.tolist()
        return time.perf_counter() - started_s

    def _prepare(self, case: Case) -> None:
        if case.num_new > 1:
            self._runner.cache.clear_blocks(self._prefill_blocks(case))

    def _rows(self, case: Case) -> tuple[RowTable, list[Work]]:
        rows = RowTable(case.num_rows)
        per_row = case.blocks_per_row
        work = []
        for number in range(case.num_rows):
            blocks = list(range(number * per_row, (number + 1) * per_row))
            if case.num_new > 1:
                blocks = self._prefill_blocks(case)
            row = rows.admit(self._admission(number, case, blocks))
            work.append(Work(row, case.num_new))
        return rows, work

    def _prefill_blocks(self, case: Case) -> list[int]:
        first = self._num_context_blocks
        return list(range(first, first + case.blocks_per_row))

    def _admission(self, number: int, case: Case, blocks: list[int]) -> Admission:
        return Admission(
            row=number,
            row_epoch=1,
            token_ids=self._ids[: case.context].tolist(),
            num_prompt_tokens=case.context,
            num_cached_tokens=case.context - case.num_new,
            choice=0,
            blocks=blocks,
            sampling=SamplingSpec(temperature=0.0),
            stop_token_ids=(),
            max_len=case.context + 1,
        )

    def _fill(self) -> None:
        """One prompt goes through the model, its K/V is copied over all blocks of contexts."""
        cache = self._runner.cache
        sources = self._prefill_blocks(PROMPT)
        cache.clear_blocks(sources)
        self._step_s(*self._rows(PROMPT))
        targets = range(self._num_context_blocks)
        for start in range(0, len(targets), COPIED_BLOCKS):
            group = targets[start : start + COPIED_BLOCKS]
            cache.copy_blocks([(sources[target % len(sources)], target) for target in group])
