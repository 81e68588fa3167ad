"""The default model in the engine alone: routes that agree, memory as predicted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from millrace.config.home import millrace_home
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.hub.catalog import resolve_model
from millrace.hub.entry import ModelEntry
from millrace.hub.fit import check_fit
from millrace.testing.stack import Stack
from tests.e2e.conftest import DEFAULT_MODEL
from tests.e2e.prompts import load_references

NAMES = ("one-token", "capital", "python", "chinese", "emoji", "numbered-300")
PEAK_TOLERANCE = 0.10

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def entry(stack: Stack) -> ModelEntry:
    """Fetched by the stack where it was not there."""
    return resolve_model(DEFAULT_MODEL, millrace_home({"MILLRACE_HOME": str(stack.home)}))


def test_generic_route_equals_the_native_one_and_transformers(entry: ModelEntry) -> None:
    references = [load_references()[name] for name in NAMES]
    for route in ("native", "generic"):
        engine = create_engine(
            EngineConfig(
                model_path=entry.path,
                name=entry.name,
                dtype="float32",
                route=route,
                num_blocks=128,
                max_num_seqs=8,
            )
        )
        assert engine.info.route == route
        requests = [
            LocalRequest(reference.prompt_token_ids, reference.max_tokens)
            for reference in references
        ]
        outputs = LocalGenerator(engine).generate(requests)
        for reference, output in zip(references, outputs, strict=True):
            assert output.token_ids == reference.output_token_ids, (route, reference.name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fit_predicts_peak_memory_within_ten_percent(entry: ModelEntry, dtype: str) -> None:
    length = 2048
    script = Path(__file__).with_name("memory_peak.py")
    measured = subprocess.run(
        [sys.executable, str(script), str(entry.path), dtype, str(length)],
        check=True,
        capture_output=True,
        text=True,
    )
    peak_bytes = json.loads(measured.stdout)["peak_bytes"]
    report = check_fit(entry, 64 << 30, dtype, 1, max_model_len=length)
    predicted_bytes = report.asked.peak_resident_bytes
    assert abs(predicted_bytes / peak_bytes - 1) < PEAK_TOLERANCE
