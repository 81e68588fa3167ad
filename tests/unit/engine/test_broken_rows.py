"""A row that cannot be computed ends alone: its neighbours, before and after, are as without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millrace.core.errors import InternalError
from millrace.core.sampling import SamplingSpec
from millrace.core.step import RowError
from millrace.engine.config import EngineConfig
from millrace.engine.engine import NOT_FINITE, Engine, create_engine
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.worker.warm_up import warm_up
from tests.unit.engine.conftest import BACKENDS, NEEDS_KERNELS
from tests.unit.engine.damages import Tensors

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
GREEDY = SamplingSpec(temperature=0.0)
WAYS = {
    "greedy": GREEDY,
    "sampled": SamplingSpec(temperature=0.9, seed=5),
    "nucleus": SamplingSpec(temperature=0.9, top_p=0.8, seed=5),
    "logprobs": SamplingSpec(temperature=0.0, top_logprobs=3),
    "penalties": SamplingSpec(temperature=0.0, repetition_penalty=1.3, logit_bias=((5, -100.0),)),
}
ROUTES = [
    *(("mistral", "native", backend) for backend in BACKENDS),
    ("mistral", "generic", "torch"),
]
ROUTES += [("gemma2", "generic", backend) for backend in BACKENDS]


def put_value(name: str, place: tuple[int, ...], value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name][place] = value

    return change


@pytest.fixture
def engine_of(folder_of) -> Callable[..., Engine]:
    def make(name: str, change: Callable[[Tensors], object], **settings: Any) -> Engine:
        folder: Path = folder_of(name, change)
        defaults = {"device": "cpu", "dtype": "float32", "num_threads": 1, "max_num_seqs": 8}
        return create_engine(EngineConfig(folder, name, **{**defaults, **settings}))

    return make


def infinite_row(token: int) -> Callable[[Tensors], None]:
    """Of the embedding: the head has none, tied or not."""

    def change(tensors: Tensors) -> None:
        tensors.setdefault(HEAD, tensors[EMBEDDING].clone())
        tensors[EMBEDDING][token, 3] = math.inf

    return change


NARROW = [
    pytest.param({"backend": "cpu", **settings}, marks=NEEDS_KERNELS)
    for settings in (
        {"quantization": "int8", "kv_dtype": "int8"},
        {"quantization": "int4", "kv_dtype": "int8"},
        {"dtype": "bfloat16", "kv_dtype": "int8"},
    )
]
EVERY_ENGINE = [
    *({"name": name, "route": route, "backend": backend} for name, route, backend in ROUTES),
    *({"name": "mistral-narrow", "backend": backend} for backend in BACKENDS),
    *NARROW,
]


@pytest.mark.parametrize("settings", EVERY_ENGINE, ids=lambda given: "-".join(given.values()))
def test_row_ends_alone_with_its_reason(engine_for, engine_of, drive, prompt, settings):
    settings = {"name": "mistral", **settings}
    good = prompt(40)
    expected = {}
    for way, sampling in WAYS.items():
        whole = drive(engine_for(**settings))
        whole.start(0, good, sampling=sampling)
        for _ in range(7):
            whole.execute()
        expected[way] = whole.outputs[0]
    token = min(set(range(1, 128)) - {*good, *(each for out in expected.values() for each in out)})
    name = settings["name"]
    rest = {key: value for key, value in settings.items() if key != "name"}
    engine = engine_of(name, infinite_row(token), **rest)

    for way, sampling in WAYS.items():
        for bad in ([*good, token], [token, *good], [*good[:9], token, *good[9:]]):
            engine.reset()
            driver = drive(engine)
            driver.start(0, good, sampling=sampling)
            admissions = [
                driver.admission(1, bad, sampling=sampling),
                driver.admission(2, good, sampling=sampling),
            ]
            first = driver.execute(admissions=admissions, chunks=[(1, 8), (2, 8)])
            results = [first, driver.execute(chunks=[(1, len(bad) - 8), (2, len(good) - 8)])]
            results += [driver.execute() for _ in range(5)]
            driver.execute(release_rows=[1])
            # The blocks of the broken row are used again.
            again = driver.admission(3, good, sampling=sampling, blocks=driver.blocks[1])
            driver.execute(admissions=[again], chunks=[(3, len(good))])
            for _ in range(4):
                driver.execute()

            errors = [error for result in results for error in result.row_errors]
            assert errors == [RowError(1, NOT_FINITE)]
            assert driver.outputs[1] == []
            assert driver.outputs[0][:8] == expected[way]
            assert driver.outputs[2][:6] == expected[way][:6]
            assert driver.outputs[3] == expected[way][:5]


@pytest.mark.parametrize(("name", "route", "backend"), ROUTES)
def test_row_ends_in_the_step_that_breaks_it_and_not_later(
    engine_of, drive, prompt, name, route, backend
):
    engine = engine_of(name, infinite_row(101), route=route, backend=backend)
    driver = drive(engine)
    tokens = [101, *prompt(40)]

    # It does not sample yet; what others would find of it in a cache is no number.
    broken = driver.execute(admissions=[driver.admission(0, tokens)], chunks=[(0, 32)])
    after = driver.execute(chunks=[(0, 8)])

    assert broken.row_errors == [RowError(0, NOT_FINITE)]
    assert (after.row_errors, after.num_tokens, engine.live_rows) == ([], 0, [])


@pytest.mark.parametrize(("name", "route", "backend"), ROUTES)
def test_row_that_draws_the_broken_token_ends_behind_it(
    engine_of, drive, prompt, name, route, backend
):
    token = min(set(range(1, 128)) - {*prompt(9), *prompt(12)})
    engine = engine_of(name, infinite_row(token), route=route, backend=backend)
    driver = drive(engine)
    wants, avoids = (
        SamplingSpec(temperature=0.0, logit_bias=((token, bias),)) for bias in (100.0, -100.0)
    )

    first = driver.start(0, prompt(9), sampling=wants)
    driver.start(1, prompt(12), sampling=avoids)
    second = driver.execute()

    assert driver.outputs[0] == [token]
    assert first.row_errors == [] and second.row_errors == [RowError(0, NOT_FINITE)]
    assert [token.row for token in second.tokens] == [1]


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        (NORM, (3,)),
        (HEAD, (5, 7)),
        ("model.layers.1.input_layernorm.weight", (0,)),
        ("model.layers.1.self_attn.k_proj.weight", (3, 9)),
        ("model.layers.2.self_attn.v_proj.weight", (31, 63)),
        ("model.layers.0.self_attn.o_proj.weight", (63, 0)),
        ("model.layers.2.mlp.down_proj.weight", (1, 95)),
        ("model.layers.0.mlp.gate_proj.weight", (95, 1)),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [*({"backend": backend} for backend in BACKENDS), *NARROW],
    ids=lambda given: "-".join(given.values()),
)
def test_weight_that_is_not_a_number_is_never_served(
    engine_of, drive, prompt, tensor, place, settings
):
    engine = engine_of("mistral", put_value(tensor, place, math.nan), **settings)

    for sampling in WAYS.values():
        engine.reset()
        result = drive(engine).start(0, prompt(9), sampling=sampling)
        assert (result.tokens, result.row_errors) == ([], [RowError(0, NOT_FINITE)])
        with pytest.raises(InternalError, match=NOT_FINITE):
            LocalGenerator(engine).generate([LocalRequest(prompt(9), 4, sampling)])
    with pytest.raises(InternalError, match="the model cannot generate: the model's output is not"):
        warm_up(engine)


@pytest.mark.parametrize("token_ids", [[5, 128], [128], [3, 2**31, 4], [5, -1], [50_000_000, 7]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_row_with_a_token_that_the_model_lacks_ends_alone(
    tiny, engine_for, drive, prompt, token_ids, backend
):
    driver = drive(engine_for("llama", backend))
    driver.start(0, prompt(9))
    bad, good = driver.admission(1, token_ids), driver.admission(2, prompt(12))

    result = driver.execute(admissions=[bad, good], chunks=[(1, len(token_ids)), (2, 12)])
    for _ in range(5):
        assert driver.execute().row_errors == []
    driver.execute(release_rows=[1])

    wrong = next(token for token in token_ids if not 0 <= token < 128)
    reason = f"there is no token {wrong}; there are 0 to 127"
    assert result.row_errors == [RowError(1, reason)]
    for row, length in ((0, 9), (2, 12)):
        output = driver.outputs[row]
        assert len(output) >= 6
        assert output == tiny("llama").greedy(prompt(length), len(output))


def test_every_token_of_the_model_is_taken(engine_for, drive):
    driver = drive(engine_for("llama"))

    assert driver.start(0, [0, 127, 5]).row_errors == []
