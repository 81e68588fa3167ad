"""What the kernels refuse, before they read anything: argument, value and what it must be."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest

from millrace.core.errors import ConfigError, InternalError, UnsupportedModel
from millrace.engine.kernels.cpu.instruction_paths import choose_path
from millrace.engine.kernels.cpu.library import (
    BF16,
    F32,
    INT4,
    INT8,
    INVALID,
    UNSUPPORTED,
    Kernels,
    address,
    floats,
    numbers,
)
from tests.unit.engine.conftest import NEEDS_KERNELS
from tests.unit.engine.cpu.argument_calls import (
    Call,
    all_calls,
    attend_call,
    draw_call,
    multiply_call,
    pack_call,
    run_call,
)
from tests.unit.engine.cpu.kernel_runner import NativeRunner, make_runner

pytestmark = NEEDS_KERNELS


@pytest.fixture(scope="module")
def native(kernel_folder) -> NativeRunner:
    path = choose_path("auto")
    assert path is not None
    runner = make_runner(path.name, kernel_folder)
    assert isinstance(runner, NativeRunner)
    return runner


@pytest.fixture(scope="module")
def calls(native) -> dict[str, Call]:
    draw = np.random.default_rng(5)
    return {
        "pack": pack_call(draw, native, INT8),
        "multiply": multiply_call(draw, native, BF16),
        "attend": attend_call(draw, native, INT8),
        "run": run_call(draw, native, (INT4, BF16), has_biases=True),
        "draw": draw_call(draw),
    }


WRONG: dict[str, list[Any]] = {"address": [None], "claim": [-1, -(2**63), 0]}
# Rows have 70, 40 and 3 tokens, of which 1, 30 and 3 are new; there are 131 token ids and 9 blocks.
REFUSED = [
    ("pack", "kind", 4, "kind is 4; it must be from 0 to 3"),
    ("pack", "columns", -33, "columns is -33; it must be from 1 to 1073741824"),
    ("pack", "k", 71, "num_source is 2310; it must be 2343"),
    ("pack", "bytes", 1000, "bytes is 1000; it must be 8704"),
    ("multiply", "team", None, "team is null; it must be an address"),
    ("multiply", "matrix", None, "matrix is null; it must be an address"),
    ("multiply", "rows", 6, "num_in is 350; it must be 420"),
    ("multiply", "num_out", 319, "num_out is 319; it must be at least 320"),
    ("multiply", "matrix.kind", 9, "matrix.kind is 9; it must be from 0 to 3"),
    ("multiply", "matrix.columns", 65, "matrix.bytes is 16384; it must be 24576"),
    ("multiply", "matrix.columns", 2**62, "from 1 to 1073741824"),
    ("multiply", "matrix.bytes", 0, "matrix.bytes is 0; it must be 16384"),
    ("multiply", "matrix.bias.count", 33, "matrix.bias.count is 33; it must be 64"),
    ("attend", "how.num_heads", 7, "num_heads is 7; it must be a multiple of num_kv_heads, 2"),
    ("attend", "how.num_heads", 12, "sinks.count is 6; it must be 12"),
    ("attend", "how.window", -1, "window is -1; it must be from 0 to 1073741824"),
    ("attend", "how.scale", math.nan, "scale is nan; it must be finite"),
    ("attend", "how.softcap", -1.0, "softcap is -1; it must be at least 0"),
    ("attend", "kv.kind", 3, "kv.kind is 3; it must be from 0 to 2"),
    ("attend", "kv.num_kv_heads", 0, "num_kv_heads is 0; it must be from 1 to 4096"),
    ("attend", "kv.key_dim", 0, "kv.key_dim is 0; it must be from 1 to 16384"),
    ("attend", "kv.bytes", 0, "block_tables[0] is {block}; it must be from 0 to -1"),
    ("attend", "batch.tiles_per_block", 0, "tiles_per_block is 0; it must be from 1 to 32768"),
    ("attend", "batch.table_width", 1, "block_tables.count is 6; it must be 3"),
    ("attend", "heads.q.count", 4079, "q.count is 4079; it must be 4080"),
    ("attend", "heads.num_out", 6731, "num_out is 6731; it must be at least 6732"),
    ("attend", "heads.out", None, "out is null; it must be an address"),
    ("run", "num_kv", 1, "num_kv is 1; it must be 2"),
    ("run", "kv[1].kind", F32, "kv[1].kind is 0; it must be 1"),
    ("run", "kv[1].key_dim", 24, "kv[1].key_dim is 24; it must be 20"),
    ("run", "input_ids[0]", 131, "input_ids[0] is 131; it must be from 0 to 130"),
    ("run", "input_ids[33]", -1, "input_ids[33] is -1; it must be from 0 to 130"),
    ("run", "input_ids[33]", 50_000_000, "input_ids[33] is 50000000; it must be from 0 to 130"),
    ("run", "positions[0]", 70, "positions[0] is 70; it must be 69"),
    ("run", "positions[5]", 13, "positions[5] is 13; it must be 14"),
    ("run", "cu_seqlens_q[0]", 1, "cu_seqlens_q[0] is 1; it must be 0"),
    ("run", "cu_seqlens_q[2]", 0, "cu_seqlens_q[2] is 0; it must be from 1 to 34"),
    ("run", "cu_seqlens_q[3]", 33, "cu_seqlens_q[3] is 33; it must be 34"),
    ("run", "context_lens[0]", 97, "context_lens[0] is 97; it must be from 1 to 96"),
    ("run", "context_lens[1]", 29, "context_lens[1] is 29; it must be from 30 to 96"),
    ("run", "block_tables[2]", 9, "block_tables[2] is 9; it must be from 0 to 8"),
    ("run", "block_tables[3]", -1, "block_tables[3] is -1; it must be from 0 to 8"),
    ("run", "sample_indices[1]", 34, "sample_indices[1] is 34; it must be from 0 to 33"),
    ("run", "batch.num_rows", 2, "cu_seqlens_q.count is 4; it must be 3"),
    ("run", "batch.num_tokens", 35, "positions.count is 34; it must be 35"),
    ("run", "batch.num_samples", 3, "sample_indices.count is 2; it must be 3"),
    ("run", "out.num_logits", 319, "num_logits is 319; it must be at least 320"),
    ("run", "out.num_wanted", 1, "num_wanted is 1; it must be 2"),
    ("run", "out.progress", None, "progress is null; it must be an address"),
    ("run", "model.hidden", 0, "hidden is 0; it must be from 1 to 1073741824"),
    ("run", "model.hidden", 85, "embedding_bytes is 22008; it must be 22270"),
    ("run", "model.head_dim", 19, "head_dim is 19; it must be a multiple of 2"),
    ("run", "model.num_kv_heads", 3, "layers[0].qkv.columns is 200; it must be 240"),
    ("run", "model.vocab", 130, "embedding_bytes is 22008; it must be 21840"),
    ("run", "model.head.columns", 700, "head.columns is 700; it must be 131"),
    ("run", "model.head.kind", BF16, "head.kind is 1; it must be 2"),
    ("run", "model.embedding_kind", INT8, "embedding_kind is 2; it must be from 0 to 1"),
    ("run", "model.norm_eps", math.inf, "norm_eps is inf; it must be finite"),
    ("run", "model.frequencies.count", 9, "frequencies.count is 9; it must be 10"),
    ("run", "model.final_norm.count", 84, "final_norm.count is 84; it must be 128"),
    ("run", "layers[1].qkv.kind", F32, "layers[1].qkv.kind is 0; it must be 3"),
    ("run", "layers[1].o.k", 84, "layers[1].o.k is 84; it must be 120"),
    ("run", "layers[1].gate_up.columns", 140, "layers[1].gate_up.columns is 140; it must be 192"),
    ("run", "layers[1].down.k", 96, "layers[1].down.k is 96; it must be 70"),
    ("run", "layers[0].q_norm.count", 19, "layers[0].q_norm.count is 19; it must be 20"),
    ("run", "layers[1].window", -1, "layers[1].window is -1; it must be from 0 to 1073741824"),
    ("draw", "vocab", 0, "vocab is 0; it must be from 1 to 1073741824"),
    ("draw", "stride", 4999, "stride is 4999; it must be from 5000 to 1073741824"),
    ("draw", "num_logits", 15005, "draws[1].row is 2; it must be from 0 to 1"),
    ("draw", "draws[0].row", -1, "draws[0].row is -1; it must be from 0 to 2"),
    ("draw", "draws[1].top_k", -1, "draws[1].top_k is -1; it must be at least 0"),
    ("draw", "draws[1].top_p", 1.5, "draws[1].top_p is 1.5; it must be from 0 to 1"),
    ("draw", "draws[1].min_p", math.nan, "draws[1].min_p is nan; it must be from 0 to 1"),
    ("draw", "draws[0].position", 2**32, "draws[0].position is 4294967296; it must be from 0 to"),
    ("draw", "draws[0].choice", -1, "draws[0].choice is -1; it must be from 0 to 4294967295"),
]


@pytest.mark.parametrize(("call", "name", "value", "expected"), REFUSED)
def test_wrong_argument_is_refused_by_name_value_and_limit(
    native, calls, call, name, value, expected
):
    spot = calls[call].spot(name)
    expected = expected.replace("{block}", str(calls["attend"].arrays["block_tables"].flat[0]))

    with spot.set_to(value):
        code = calls[call].run(native)

    assert code == INVALID, native.kernels().reason
    assert expected in native.kernels().reason
    assert calls[call].run(native) == 0, native.kernels().reason


def test_calls_are_right_and_no_address_may_be_missing_and_no_size_less(native, rng):
    tried = 0
    for call in all_calls(rng, native):
        right = call.run(native)
        assert right > 0 if call.function.endswith("_bytes") else right == 0
        for spot in call.spots():
            before = spot.read()
            if before is None or (isinstance(before, int) and before == 0):
                continue  # left out, as it may be here
            less = WRONG.get(spot.kind, [])
            # To draw nothing is no fault.
            for value in less[:2] if spot.name == "num_draws" else less:
                with spot.set_to(value):
                    assert call.run(native) == INVALID, (call.function, spot.name, value)
                    assert "; it must be " in native.kernels().reason
                tried += 1
    assert tried > 500


def test_rows_that_are_sound_are_asked_for_after_a_run_and_as_many_as_it_had(native, calls):
    args = calls["run"].args
    kernels, model = native.kernels(), ctypes.c_void_p()
    kernels.check(kernels.c.mr_model_create(ctypes.byref(args[0]), ctypes.byref(model)))
    is_sound = np.full(4, 7, np.uint8)

    def refusal(model: Any, rows: int | None, count: int) -> str:
        assert kernels.c.mr_model_sound_rows(model, rows, count) == INVALID
        return str(kernels.reason)

    try:
        assert refusal(model, address(is_sound), 0) == "the model has not run yet"
        batch, out = (ctypes.byref(each) for each in args[4:])
        kernels.check(kernels.c.mr_model_run(model, kernels.team, args[2], args[3], batch, out))
        assert refusal(None, address(is_sound), 3) == "model is null; it must be an address"
        assert refusal(model, None, 3) == "is_sound is null; it must be an address"
        for count in (-1, 0, 2, 4, 2**62):
            assert refusal(model, address(is_sound), count) == (
                f"num_rows is {count}; it must be 3"
            )
        kernels.check(kernels.c.mr_model_sound_rows(model, address(is_sound), 3))
    finally:
        kernels.c.mr_model_destroy(model)
    assert is_sound.tolist() == [1, 1, 1, 7]


def test_heads_that_no_kernel_takes_are_said_to_be_unsupported(native, calls):
    attend = calls["attend"]
    with attend.spot("how.num_heads").set_to(98), attend.spot("how.sinks.count").set_to(98):
        assert attend.run(native) == UNSUPPORTED
    with pytest.raises(UnsupportedModel, match="more than 48 query heads share a K/V head"):
        native.kernels().check(UNSUPPORTED)


def test_refusal_is_a_defect_of_ours_in_one_line(native, calls):
    with calls["run"].spot("input_ids[1]").set_to(640):
        code = calls["run"].run(native)

    with pytest.raises(InternalError) as error:
        native.kernels().check(code)
    assert error.value.message == (
        "the CPU kernels refuse a call: input_ids[1] is 640; it must be from 0 to 130"
    )


@pytest.mark.parametrize("size", [0, -1, 4097, 2**31, 2**32 + 1, -(2**63)])
def test_team_of_a_size_that_cannot_be_is_refused(native, size):
    with pytest.raises(ConfigError, match=f"num_threads is {size}; it must be from 1 to 4096") as e:
        Kernels(native.library, native.path.name, size)
    assert e.value.field == "num_threads"


@pytest.mark.parametrize(
    ("kind", "columns", "k", "expected"),
    [
        (4, 1, 1, "kind is 4; it must be from 0 to 3"),
        (F32, 0, 1, "columns is 0; it must be from 1 to 1073741824"),
        (INT8, 1, 2**62, "k is 4611686018427387904; it must be from 1 to 1073741824"),
    ],
)
def test_size_of_panels_that_cannot_be_is_refused(native, kind, columns, k, expected):
    with pytest.raises(InternalError, match=expected):
        native.kernels().panel_bytes(kind, columns, k)


def test_size_of_a_tile_that_cannot_be_is_refused(native):
    with pytest.raises(InternalError, match="kind is 3; it must be from 0 to 2"):
        native.kernels().tile_bytes(INT4, 64, 64)
    with pytest.raises(InternalError, match="value_dim is -64; it must be from 1 to 16384"):
        native.kernels().tile_bytes(INT8, 64, -64)


@pytest.mark.parametrize(
    ("make", "array"),
    [
        (floats, np.zeros(4)),
        (floats, np.zeros(4, np.int32)),
        (floats, np.zeros((4, 4), np.float32)[:, :2]),
        (numbers, np.zeros(4, np.int32)),
        (numbers, np.zeros(8, np.int64)[::2]),
        (numbers, np.zeros(8, ">i8")),
    ],
)
def test_array_of_another_kind_is_not_handed_over(make, array):
    with pytest.raises(ValueError, match="is not .* in a row"):
        make(array)
