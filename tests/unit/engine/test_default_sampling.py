"""What of generation_config.json becomes the sampling of silent requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from millrace.core.sampling import SamplingDefaults
from millrace.engine.default_sampling import default_sampling
from millrace.engine.generation_config import GenerationDefaults, read_generation_config


def test_wishes_of_a_checkpoint_are_taken(tmp_path: Path) -> None:
    wanted = {"temperature": 0.2, "top_p": 0.9, "top_k": 50, "do_sample": True, "eos_token_id": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(wanted))

    assert default_sampling(read_generation_config(tmp_path)) == SamplingDefaults(0.2, 0.9, 50)


def test_without_the_file_there_are_no_wishes(tmp_path: Path) -> None:
    assert default_sampling(read_generation_config(tmp_path)) == SamplingDefaults()


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ({"temperature": 5.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 3.0}, "repetition_penalty"),
    ],
)
def test_what_no_request_may_say_is_reported_and_left_out(
    wanted: dict[str, Any], name: str
) -> None:
    reports: list[str] = []
    taken = default_sampling(GenerationDefaults(min_p=0.1, **wanted), reports.append)

    assert taken == SamplingDefaults(min_p=0.1)
    assert len(reports) == 1
    assert name in reports[0]
