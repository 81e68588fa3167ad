"""Runs one full-length row through the engine and prints the process's peak memory, bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission, StepPlan
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine

CHUNK_TOKENS = 2048


def main(path: str, dtype: str, max_len: str) -> None:
    """The whole row in chunks, then one decode step."""
    length = int(max_len)
    num_blocks = -(-length // 32)
    engine = create_engine(
        EngineConfig(
            model_path=Path(path),
            name="measured",
            dtype=dtype,
            max_num_seqs=1,
            max_model_len=length,
            num_blocks=num_blocks,
        )
    )
    num_prompt_tokens = length - 8
    admission = Admission(
        row=0,
        row_epoch=1,
        token_ids=[100 + index % 1000 for index in range(num_prompt_tokens)],
        num_prompt_tokens=num_prompt_tokens,
        num_cached_tokens=0,
        choice=0,
        blocks=list(range(num_blocks)),
        sampling=SamplingSpec(temperature=0.0),
        stop_token_ids=(),
        max_len=length,
    )
    done, plan_id = 0, 0
    while done < num_prompt_tokens:
        chunk = min(CHUNK_TOKENS, num_prompt_tokens - done)
        admissions = [] if plan_id else [admission]
        plan_id, done = plan_id + 1, done + chunk
        engine.execute(StepPlan(plan_id, admissions=admissions, chunks=[(0, chunk)]))
    engine.execute(StepPlan(plan_id + 1))
    print(json.dumps({"peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Of this program alone: getrusage would count what the parent had before the exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (peak_kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak_kib) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
