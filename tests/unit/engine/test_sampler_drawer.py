"""What the sampler hands to a drawer, and what it does with the answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from millrace.core.sampling import SamplingSpec
from millrace.engine.sampler import DrawRequest, Sampler, SampleRow

CPU = torch.device("cpu")
VOCAB_SIZE = 50


class Recorder:
    """Answers with the last token of every row, or with None for odd positions."""

    def __init__(self) -> None:
        self.requests: list[DrawRequest] = []
        self.rows: list[npt.NDArray[np.float32]] = []

    def draw(
        self, logits: npt.NDArray[np.float32], requests: Sequence[DrawRequest]
    ) -> list[int | None]:
        self.requests += requests
        self.rows += [logits[request.row].copy() for request in requests]
        return [VOCAB_SIZE - 1 if request.position % 2 == 0 else None for request in requests]


def row_of(length: int, choice: int = 0, **spec: object) -> SampleRow:
    return SampleRow(SamplingSpec(**spec), [0] * length, 1, choice, (2,))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drawer_gets_random_unedited_rows_and_decides_what_it_can(dtype: torch.dtype) -> None:
    rows = [
        row_of(2, temperature=0.0),
        row_of(4, choice=3, top_logprobs=1),
        row_of(6, frequency_penalty=0.5),
        row_of(5, top_p=0.9),
        row_of(8, temperature=0.0, top_logprobs=0),
        row_of(10, min_tokens=20),
        row_of(12, logit_bias=((3, 1.0),)),
        row_of(14, top_k=3),
    ]
    # Padding past the vocabulary, as the kernels leave it.
    logits = torch.randn(len(rows), VOCAB_SIZE + 14).to(dtype)
    drawer = Recorder()

    sampled = Sampler(VOCAB_SIZE, drawer).sample(logits, rows)

    expected = Sampler(VOCAB_SIZE).sample(logits, rows)
    given = [1, 3, 7]
    assert [(r.spec, r.position, r.choice) for r in drawer.requests] == [
        (rows[i].spec, len(rows[i].token_ids), rows[i].choice) for i in given
    ]
    for i, values in zip(given, drawer.rows, strict=True):
        assert np.array_equal(values, logits[i, :VOCAB_SIZE].float().numpy())
    assert [sampled[i].token_id for i in (1, 7)] == [VOCAB_SIZE - 1] * 2
    others = [i for i in range(len(rows)) if i not in (1, 7)]
    assert [sampled[i] for i in others] == [expected[i] for i in others]
    assert sampled[1].logprobs is not None and expected[1].logprobs is not None
    chosen = float(logits[1, :VOCAB_SIZE].double().log_softmax(-1)[VOCAB_SIZE - 1])
    assert sampled[1].logprobs.chosen == pytest.approx(chosen, abs=1e-9)
    assert sampled[1].logprobs.top == expected[1].logprobs.top


def test_drawer_is_not_called_without_a_row_for_it() -> None:
    drawer = Recorder()
    rows = [row_of(2, temperature=0.0, top_logprobs=1), row_of(2, presence_penalty=1.0)]

    Sampler(VOCAB_SIZE, drawer).sample(torch.randn(2, VOCAB_SIZE), rows)

    assert drawer.requests == []
