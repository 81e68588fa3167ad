"""Memory arithmetic, on models small enough to count by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.config.home import Home
from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.engine.tensor_headers import read_tensor_headers, tensor_headers
from millrace.hub.byte_size import format_bytes, parse_memory
from millrace.hub.catalog import resolve_model
from millrace.hub.entry import ModelEntry, max_model_len_of, read_config
from millrace.hub.fit import PACKING_RUNTIME_BYTES, check_fit
from millrace.hub.model_shape import QUANTIZED, shape_of
from millrace.hub.safetensors_file import write_safetensors

GB = 10**9
# Of the tiny model: attention, MLP and norms of two layers, and the last norm.
IN_LAYERS = 2 * (16 * 16 + 8 * 16 + 8 * 16 + 16 * 16 + 3 * 24 * 16 + 2 * 16) + 16


@pytest.fixture
def short(make_model: Callable[..., Path], home: Home) -> ModelEntry:
    """A small model of 256 positions."""
    return resolve_model(str(make_model("short", max_position_embeddings=256)), home)


def test_parameters_and_kv_are_counted_from_the_files(tiny_model: Path) -> None:
    shape = shape_of(read_config(tiny_model), tensor_headers(tiny_model))

    assert shape.num_parameters == 32 * 16 + IN_LAYERS
    assert shape.weight_bytes("bfloat16") == 2 * shape.num_parameters
    # K and V, 2 layers, 2 heads of 4 numbers, 4 bytes each.
    assert shape.kv_bytes_per_token("float32") == 2 * 2 * 2 * 4 * 4
    assert shape.kv_bytes_per_token("bfloat16") == shape.kv_bytes_per_token("float32") // 2


def test_matrices_of_8_bits_share_a_scale_and_embeddings_keep_16(tiny_model: Path) -> None:
    config, tensors = read_config(tiny_model), tensor_headers(tiny_model)
    embedding, matrices = 32 * 16, IN_LAYERS

    tied = shape_of(config | {"tie_word_embeddings": True}, tensors)
    untied = shape_of(config | {"tie_word_embeddings": False}, tensors)

    assert untied.weight_bytes("int8") == 2 * embedding + matrices * 34 // 32
    assert tied.weight_bytes("int8") == 2 * embedding + (matrices + embedding) * 34 // 32
    assert tied.kv_bytes_per_token("int8") == tied.kv_bytes_per_token("bfloat16")


def test_matrices_of_4_bits_have_a_head_of_8(tiny_model: Path) -> None:
    config, tensors = read_config(tiny_model), tensor_headers(tiny_model)
    embedding, matrices = 32 * 16, IN_LAYERS

    tied = shape_of(config | {"tie_word_embeddings": True}, tensors)

    assert tied.weight_bytes("int4") == 2 * embedding + embedding * 34 // 32 + matrices * 20 // 32


def test_8_bit_weights_are_asked_for_and_suggested(short: ModelEntry) -> None:
    rows = {row.dtype: row for row in check_fit(short, GB, has_kernels=False).rows}
    memory = (rows["int8"].needed_bytes + rows["bfloat16"].needed_bytes) // 2

    refused = check_fit(short, memory, "bfloat16", has_kernels=False)

    assert not refused.fits
    assert "--quantization int8" in refused.suggestion
    assert check_fit(short, memory, "bfloat16", quantization="int8", has_kernels=False).fits


def test_4_bit_weights_are_suggested_where_8_do_not_fit(short: ModelEntry) -> None:
    rows = {row.dtype: row for row in check_fit(short, GB, has_kernels=False).rows}
    memory = (rows["int4"].needed_bytes + rows["int8"].needed_bytes) // 2

    for asked in ("none", "int8"):
        refused = check_fit(short, memory, "bfloat16", quantization=asked, has_kernels=False)
        assert not refused.fits
        assert "4-bit weights, at some cost in quality (--quantization int4" in refused.suggestion


def test_tied_head_is_not_counted_twice(tiny_model: Path) -> None:
    (tiny_model / "model.safetensors").rename(tiny_model / "body.safetensors")
    head = tiny_model / "head.safetensors"
    write_safetensors(head, [("lm_head.weight", "BF16", (32, 16))], [bytes(1024)])
    config = read_config(tiny_model)

    tied = shape_of(config, tensor_headers(tiny_model))
    untied = shape_of(config | {"tie_word_embeddings": False}, tensor_headers(tiny_model))

    assert untied.num_parameters - tied.num_parameters == 32 * 16


def test_more_memory_holds_more_sequences(tiny_model: Path, home: Home) -> None:
    entry = resolve_model(str(tiny_model), home)

    small, large = (check_fit(entry, memory).asked for memory in (GB, 2 * GB))

    added = large.num_sequences(128) - small.num_sequences(128)
    assert added == pytest.approx(GB / small.bytes_per_sequence(128), abs=1)


def test_sequences_take_whole_blocks(tiny_model: Path, home: Home) -> None:
    row = check_fit(resolve_model(str(tiny_model), home), GB).asked

    assert row.bytes_per_sequence(33) == row.bytes_per_sequence(64)
    assert row.bytes_per_sequence(33) == 2 * row.bytes_per_sequence(32)


def test_bfloat16_is_suggested_where_it_is_enough(
    make_model: Callable[..., Path], home: Home
) -> None:
    entry = resolve_model(str(make_model("long", max_position_embeddings=2**22)), home)
    rows = {row.dtype: row for row in check_fit(entry, GB).rows}
    memory = (rows["float32"].needed_bytes + rows["bfloat16"].needed_bytes) // 2

    report = check_fit(entry, memory, "float32")

    assert not report.fits
    assert report.suggestion == (
        "fits with dtype bfloat16 (--dtype bfloat16, or MILLRACE_WORKER_DTYPE=bfloat16)"
    )
    assert check_fit(entry, memory, "bfloat16").fits
    with pytest.raises(ConfigError, match="(?s)float32 .*bfloat16 .*MILLRACE_WORKER_DTYPE"):
        report.require()


def test_suggested_length_is_the_longest_that_fits(
    make_model: Callable[..., Path], home: Home
) -> None:
    entry = resolve_model(str(make_model("long", max_position_embeddings=2**24)), home)

    report = check_fit(entry, GB, "bfloat16")

    assert not report.fits
    length = int(report.suggestion.rpartition("=")[2].rstrip(")"))
    assert check_fit(entry, GB, "bfloat16", max_model_len=length).fits
    assert not check_fit(entry, GB, "bfloat16", max_model_len=length + 256).fits


def test_hopeless_memory_is_told_what_it_takes(tiny_model: Path, home: Home) -> None:
    entry = resolve_model(str(tiny_model), home)

    report = check_fit(entry, 10**6, num_workers=3)

    assert report.suggestion.startswith("no setting fits with 3 workers: it takes at least")


def test_workers_share_the_memory(tiny_model: Path, home: Home) -> None:
    entry = resolve_model(str(tiny_model), home)
    needed = check_fit(entry, GB).asked.needed_bytes

    assert check_fit(entry, 2 * needed, num_workers=2).fits
    assert not check_fit(entry, 2 * needed - 2, num_workers=2).fits


def test_missing_number_is_named(tiny_model: Path) -> None:
    config = read_config(tiny_model)
    del config["num_hidden_layers"]

    with pytest.raises(UnsupportedModel, match="no num_hidden_layers"):
        shape_of(config, [])


def test_report_lists_every_way_to_store_weights(tiny_model: Path, home: Home) -> None:
    report = check_fit(resolve_model(str(tiny_model), home), 24 * GB)

    lines = report.lines()
    assert lines[0].startswith("tiny in 24.0 GB")
    assert [line.split()[0] for line in lines[2:6]] == ["float32", "bfloat16", "int8", "int4"]
    assert json.loads(json.dumps(report.to_json()))["fits"] is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GB", 24 * GB),
        ("1.5 g", 1_500_000_000),
        ("2GiB", 2 * 2**30),
        ("512MiB", 512 * 2**20),
        ("8000k", 8_000_000),
        ("1000000", 1_000_000),
    ],
)
def test_memory_sizes_are_read(text: str, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "-1GB", "24iB", "1e9", "0", "4", "999kB"])
def test_other_memory_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write it as 24GB"):
        parse_memory(text)


@pytest.mark.parametrize("num_bytes", [4, 40])
def test_cut_weights_are_refused(tiny_model: Path, num_bytes: int) -> None:
    weights = tiny_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])

    with pytest.raises(UnsupportedModel, match="safetensors"):
        read_tensor_headers(weights)


def test_weights_with_a_missing_tail_are_refused(tiny_model: Path) -> None:
    weights = tiny_model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])

    with pytest.raises(UnsupportedModel, match=f"{len(content) - 1} bytes where"):
        read_tensor_headers(weights)


def test_writer_refuses_bytes_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensor a: 3 bytes where its shape needs 4"):
        write_safetensors(tmp_path / "x.safetensors", [("a", "BF16", (2,))], [b"123"])


def test_sizes_are_short_and_decimal() -> None:
    assert [format_bytes(n) for n in (12, 2000, 5_000_000)] == ["12 B", "2.0 kB", "5.0 MB"]


def test_kernels_do_without_torch_and_copies_of_k_and_v(short: ModelEntry) -> None:
    kernels, torch = (check_fit(short, GB, has_kernels=has).asked for has in (True, False))

    assert kernels.runtime_bytes < torch.runtime_bytes
    assert kernels.bytes_per_sequence(256) == 256 * kernels.kv_bytes_per_token
    assert kernels.peak_resident_bytes == kernels.needed_bytes
    assert kernels.packing_bytes > kernels.needed_bytes > torch.packing_bytes == 0


@pytest.mark.parametrize(
    ("vocab", "hidden", "inter", "is_tied", "kind", "measured"),
    [
        (50_000, 512, 1024, True, "bfloat16", 357e6),
        (100_000, 1024, 2048, True, "bfloat16", 971e6),
        (100_000, 1024, 2048, True, "int8", 875e6),
        (100_000, 1024, 2048, False, "bfloat16", 1381e6),
        (100_000, 1024, 2048, False, "int8", 1285e6),
        (1_000, 1024, 16_384, True, "bfloat16", 592e6),
        (1_000, 1024, 16_384, True, "int8", 586e6),
    ],
)
def test_packing_memory_is_near_what_was_measured(
    vocab: int, hidden: int, inter: int, is_tied: bool, kind: str, measured: float
) -> None:
    config = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_attention_heads": hidden // 64,
        "num_hidden_layers": 2,
        "tie_word_embeddings": is_tied,
    }

    told = PACKING_RUNTIME_BYTES + shape_of(config, []).packing_bytes(kind)

    assert told == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("memory_share", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_no_setting_fits_only_if_none_does(
    make_model: Callable[..., Path], home: Home, memory_share: float, num_workers: int
) -> None:
    """Of all kinds and lengths; and what is suggested fits."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    folder = make_model("deep", tie_word_embeddings=False, max_position_embeddings=2**16, **sizes)
    entry = resolve_model(str(folder), home)

    def needed(kind: str, length: int) -> int:
        quantization, dtype = (kind, "auto") if kind in QUANTIZED else ("none", kind)
        report = check_fit(
            entry, GB, dtype, max_model_len=length, quantization=quantization, has_kernels=True
        )
        return report.asked.needed_bytes

    kinds = ("bfloat16", *QUANTIZED)
    least = min(needed(kind, 256) for kind in kinds)
    assert least < needed("bfloat16", 256)
    span = needed("bfloat16", 2**16) - least
    for memory in (least - 1, least + 1, least + int(span * memory_share)):
        report = check_fit(
            entry, memory * num_workers, "bfloat16", num_workers=num_workers, has_kernels=True
        )
        fits_nowhere = "no setting fits" in report.suggestion
        assert fits_nowhere == (memory < least)
        if not report.fits and "MILLRACE_WORKER_MAX_MODEL_LEN" in report.suggestion:
            length = int(report.suggestion.rpartition("=")[2].rstrip(")"))
            match = re.search(r"QUANTIZATION=(\w+)", report.suggestion)
            assert needed(match[1] if match else "bfloat16", length) <= memory


def test_a_tied_head_of_the_generic_route_is_counted_packed_and_as_embedding(
    make_generic_model: Callable[..., Path], home: Home
) -> None:
    entry = resolve_model(str(make_generic_model("g", tie_word_embeddings=True)), home)

    rows, plain = (
        {row.dtype: row for row in check_fit(entry, GB, has_kernels=has).rows}
        for has in (True, False)
    )

    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        assert rows[dtype].weight_bytes - plain[dtype].weight_bytes == size * 32 * 16
    assert rows["int8"].weight_bytes == plain["int8"].weight_bytes


@pytest.mark.parametrize(
    ("rope", "beside", "length"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 32}, {}, 32),
        ({"type": "su"}, {"original_max_position_embeddings": 32}, 32),
        ({"type": "longrope", "original_max_position_embeddings": 4096}, {}, 128),
        ({"rope_type": "yarn", "original_max_position_embeddings": 32}, {}, 128),
        ("longrope", {}, 128),
        (None, {"original_max_position_embeddings": 32}, 128),
    ],
)
def test_the_length_of_longrope_is_the_one_that_is_served(
    rope: object, beside: dict[str, int], length: int
) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        assert max_model_len_of({"max_position_embeddings": 128, key: rope} | beside) == length
        text = {"text_config": {"max_position_embeddings": 128, key: rope} | beside}
        assert max_model_len_of(text) == length
