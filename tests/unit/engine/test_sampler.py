"""What the sampler promises: the same token in any batch, and sane answers at the edges."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from millrace.core.sampling import SamplingSpec
from millrace.engine.sampler import NO_TOKEN, Sampler, SampleRow, gumbel, truncation
from millrace.engine.sampler.sampler import argmax_on_device

CPU = torch.device("cpu")
GREEDY = SamplingSpec(temperature=0.0)


def row_of(
    spec: SamplingSpec,
    token_ids: list[int] | None = None,
    *,
    num_prompt_tokens: int = 1,
    choice: int = 0,
    stop_token_ids: tuple[int, ...] = (),
) -> SampleRow:
    return SampleRow(spec, token_ids or [0], num_prompt_tokens, choice, stop_token_ids)


def token_of(logits: torch.Tensor, row: SampleRow) -> int:
    return Sampler(len(logits)).sample(logits[None], [row])[0].token_id


def mixed_rows(vocab_size: int, count: int) -> list[SampleRow]:
    rng = random.Random(count)
    specs = [
        GREEDY,
        SamplingSpec(temperature=0.0, top_logprobs=3),
        SamplingSpec(temperature=0.0, repetition_penalty=1.2),
        SamplingSpec(),
        SamplingSpec(temperature=0.8, top_p=0.95, top_k=50),
        SamplingSpec(top_p=0.9),
        SamplingSpec(top_p=0.9999),
        SamplingSpec(min_p=0.05, top_logprobs=0),
        SamplingSpec(top_k=3000, frequency_penalty=0.5),
    ]
    return [
        SampleRow(
            spec=specs[i % len(specs)],
            token_ids=[rng.randrange(vocab_size) for _ in range(rng.randrange(2, 90))],
            num_prompt_tokens=1,
            choice=i % 4,
            stop_token_ids=(2,),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_row_gets_same_token_alone_and_in_a_crowd(dtype: torch.dtype) -> None:
    vocab_size = 9000
    torch.manual_seed(1)
    logits = (torch.randn(45, vocab_size) * 2.5).to(dtype)
    rows = mixed_rows(vocab_size, len(logits))
    sampler = Sampler(vocab_size)

    together = sampler.sample(logits, rows)
    alone = [sampler.sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    order = torch.randperm(len(rows)).tolist()
    shuffled = sampler.sample(logits[order], [rows[i] for i in order])

    assert together == alone
    assert [together[i] for i in order] == shuffled


def test_row_gets_same_token_whatever_the_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab_size = 9000
    torch.manual_seed(2)
    logits = torch.randn(45, vocab_size) * 2.5
    rows = mixed_rows(vocab_size, len(logits))
    sampler = Sampler(vocab_size)
    expected = sampler.sample(logits, rows)

    monkeypatch.setattr(truncation, "NUCLEUS_WINDOW", vocab_size)
    monkeypatch.setattr(truncation, "_MIN_BUCKETS", vocab_size)
    monkeypatch.setattr(gumbel, "MAX_NOISE", math.inf)
    monkeypatch.setattr(gumbel, "CHUNK_TOKENS", 777)
    monkeypatch.setattr("millrace.engine.sampler.sampler.MAX_SHARED_TOKENS", 1)

    assert sampler.sample(logits, rows) == expected


def test_draw_depends_on_seed_position_and_choice() -> None:
    logits = torch.zeros(50)

    def sequence(seed: int, choice: int, shift: int) -> list[int]:
        spec = SamplingSpec(seed=seed)
        return [
            token_of(logits, row_of(spec, [0] * (shift + n), choice=choice)) for n in range(1, 41)
        ]

    base = sequence(1, 0, 0)
    assert sequence(1, 0, 0) == base
    assert sequence(1, 0, 1)[:-1] == base[1:]
    for other in (sequence(2, 0, 0), sequence(1 + 2**32, 0, 0), sequence(1, 1, 0)):
        assert sum(a == b for a, b in zip(base, other, strict=True)) < 10


def test_draw_ignores_past_token_values_without_penalties() -> None:
    logits = torch.zeros(50)
    spec = SamplingSpec(seed=4)

    assert token_of(logits, row_of(spec, [1, 2, 3])) == token_of(logits, row_of(spec, [7, 8, 9]))


def test_sampling_leaves_logits_and_rows_unchanged() -> None:
    logits = torch.randn(9, 300)
    rows = mixed_rows(300, 9)
    before, ids_before = logits.clone(), [list(row.token_ids) for row in rows]

    Sampler(300).sample(logits, rows)

    assert torch.equal(logits, before)
    assert [row.token_ids for row in rows] == ids_before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [GREEDY, SamplingSpec(temperature=0.0, top_logprobs=1)])
def test_greedy_tie_goes_to_lowest_id(spec: SamplingSpec, dtype: torch.dtype) -> None:
    logits = torch.full((4096,), -1.0, dtype=dtype)
    logits[[4000, 517, 1023]] = 2.0

    assert token_of(logits, row_of(spec)) == 517


def test_top_k_one_is_greedy() -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1))
    spec = SamplingSpec(temperature=1.5, top_k=1)

    assert token_of(logits, row_of(spec)) == int(logits.argmax())


@pytest.mark.parametrize("top_k", [50, 51, 2**31 - 1])
def test_top_k_of_vocabulary_or_more_truncates_nothing(top_k: int) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(2))
    for n in range(1, 40):
        free = row_of(SamplingSpec(seed=3), [0] * n)
        limited = row_of(SamplingSpec(seed=3, top_k=top_k), [0] * n)
        assert token_of(logits, limited) == token_of(logits, free)


def kept(logits: list[float], spec: SamplingSpec) -> list[int]:
    array = np.array(logits, dtype=np.float32)
    return [int(i) for i in truncation.kept_tokens(array, float(array.max()), spec)]


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    assert kept([1.0, 3.0, 2.0, 2.0, 0.0], SamplingSpec(top_k=2)) == [1, 2, 3]


def test_tiny_top_p_keeps_one_token_even_among_ties() -> None:
    assert kept([0.0, 2.0, 2.0, 2.0], SamplingSpec(top_p=1e-9)) == [1]


def test_top_p_keeps_the_token_that_reaches_the_mass() -> None:
    logits = [math.log(p) for p in (0.15, 0.5, 0.05, 0.3)]

    assert kept(logits, SamplingSpec(top_p=0.49)) == [1]
    assert kept(logits, SamplingSpec(top_p=0.51)) == [1, 3]
    assert kept(logits, SamplingSpec(top_p=0.81)) == [0, 1, 3]
    assert kept(logits, SamplingSpec(top_p=0.96)) == [0, 1, 2, 3]


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]

    assert kept(logits, SamplingSpec(top_p=0.55)) == [0, 1]
    assert kept(logits, SamplingSpec(top_p=0.55, top_k=2)) == [0]


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]

    assert kept(logits, SamplingSpec(min_p=0.45)) == [0, 1, 2]
    assert kept([1.0, 4.0, 4.0, 3.9], SamplingSpec(min_p=1.0)) == [1, 2]


@pytest.mark.parametrize("top_p", [0.5, 0.95, 0.999, 1 - 1e-12])
def test_flat_logits_keep_the_first_share_of_ids(top_p: float) -> None:
    vocab_size = 20_000
    array = np.zeros(vocab_size, dtype=np.float32)

    ids = truncation.kept_tokens(array, 0.0, SamplingSpec(top_p=top_p))

    assert ids.tolist() == list(range(math.ceil(top_p * vocab_size)))


@pytest.mark.parametrize("window", [1, 128, 10_000])
def test_order_is_by_logit_where_float64_scores_tie(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truncation, "NUCLEUS_WINDOW", window)
    array = np.arange(1, 301, dtype=np.float32) * np.float32(1e-20)
    array[0] = 2.0

    ids = truncation.kept_tokens(array, 2.0, SamplingSpec(top_p=0.5))

    assert ids.tolist() == [0, *range(301 - len(ids), 300)]
    assert 100 < len(ids) < 200


@pytest.mark.parametrize("count", [1, 20, 500, 3000, 9000])
def test_top_floor_admits_the_likeliest(count: int) -> None:
    values = np.random.default_rng(count).normal(size=9001).astype(np.float32).round(1)

    floor = truncation.top_floor(values, count)

    assert floor <= np.sort(values)[-count]
    assert np.count_nonzero(values > floor) <= 1.5 * count + 8


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((200,), -math.inf)
    logits[[20, 150]] = torch.tensor([1.0, 0.5])
    specs = [
        SamplingSpec(),
        SamplingSpec(top_k=10),
        SamplingSpec(top_p=0.99),
        SamplingSpec(min_p=1e-9),
        SamplingSpec(top_k=10, top_p=0.99),
    ]

    for spec in specs:
        drawn = {token_of(logits, row_of(spec, [0] * n)) for n in range(1, 60)}
        assert drawn == {20, 150}


EVERY_WAY = [
    GREEDY,
    SamplingSpec(),
    SamplingSpec(temperature=0.0, top_logprobs=3),
    SamplingSpec(top_p=0.5, top_logprobs=2),
    SamplingSpec(top_k=5),
    SamplingSpec(min_p=0.1),
    SamplingSpec(repetition_penalty=1.2),
    SamplingSpec(temperature=0.0, logit_bias=((7, -100.0), (40, 100.0))),
    SamplingSpec(temperature=0.0, min_tokens=9),
]


@pytest.mark.parametrize("spec", EVERY_WAY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_row_that_is_not_finite_has_no_token_and_the_others_have_theirs(
    spec: SamplingSpec, dtype: torch.dtype, form: str
) -> None:
    torch.manual_seed(11)
    whole = torch.randn(8, 64).to(dtype)
    broken = whole.clone()
    broken[1, 7] = math.nan
    broken[2] = math.nan
    broken[4, 63] = math.inf
    broken[5] = -math.inf
    broken[6, 3] = -math.inf
    whole[6, 3] = -math.inf
    rows = [row_of(spec, [7, 9], stop_token_ids=(7,)) for _ in range(8)]

    def tokens(logits: torch.Tensor) -> list[int]:
        given = logits.float().numpy() if form == "numpy" else logits
        return [sampled.token_id for sampled in Sampler(64).sample(given, rows)]

    found, expected = tokens(broken), tokens(whole)
    if spec is GREEDY and form == "torch":
        assert argmax_on_device(broken) == found
    assert [found[i] for i in (1, 2, 4, 5)] == [NO_TOKEN] * 4
    assert [found[i] for i in (0, 3, 6, 7)] == [expected[i] for i in (0, 3, 6, 7)]
    assert NO_TOKEN not in expected


@pytest.mark.parametrize(
    "spec",
    [
        SamplingSpec(temperature=0.0, repetition_penalty=1e-45),
        SamplingSpec(repetition_penalty=1e-45),
        SamplingSpec(temperature=1e-320),
        SamplingSpec(temperature=0.0, min_tokens=9),
    ],
)
def test_what_edits_make_infinite_is_legal(spec: SamplingSpec) -> None:
    stop = tuple(range(64)) if spec.min_tokens else ()

    assert token_of(torch.ones(64), row_of(spec, [5], stop_token_ids=stop)) >= 0


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-5])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_vanishing_temperature_is_greedy(temperature: float, top_p: float) -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(5))
    spec = SamplingSpec(temperature=temperature, top_p=top_p)

    assert token_of(logits, row_of(spec)) == int(logits.argmax())


def test_padding_past_the_vocabulary_is_never_drawn() -> None:
    logits = torch.zeros(2, 64)
    logits[:, 60:] = 9.0

    sampled = Sampler(60).sample(logits, [row_of(GREEDY), row_of(SamplingSpec())])

    assert sampled[0].token_id == 0
    assert sampled[1].token_id < 60


def test_fewer_rows_than_logits_use_the_first() -> None:
    logits = torch.eye(4)

    sampled = Sampler(4).sample(logits, [row_of(GREEDY), row_of(GREEDY)])

    assert [s.token_id for s in sampled] == [0, 1]


def test_no_rows_give_no_tokens() -> None:
    assert Sampler(10).sample(torch.empty(0, 10), []) == []
