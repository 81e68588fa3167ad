"""A damaged checkpoint is refused in one line, or is served as if it were whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millrace.core.errors import UnsupportedModel
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.engine.models.checkpoint_check import check_checkpoint
from millrace.engine.tensor_headers import INDEX_FILE
from tests.unit.engine.conftest import BACKENDS

NUM_DAMAGES = 5 * int(os.environ.get("MILLRACE_TEST_EXAMPLES", "60"))
PROMPT = [3, 17, 99]
HUGE: tuple[Any, ...] = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, 1.5, "64", None, True, [], {})
DTYPES = ["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "U32", "F64"]
JUNK = ["", "f32", "F32 ", "F128", None, 4, ["F32"]]

Header = dict[str, Any]


def rename(header: Header, name: str, chance: random.Random) -> None:
    fields = header.pop(name)
    place = chance.randrange(len(name))
    other = name[:place] + chance.choice("\0.0189aZ_é ") + name[place + chance.randrange(2) :]
    header[chance.choice([other, other, name.upper(), f"model.{name}", name[:-1], ""])] = fields


def lose(header: Header, name: str, chance: random.Random) -> None:
    del header[name]


def add(header: Header, name: str, chance: random.Random) -> None:
    end = max(fields["data_offsets"][1] for fields in tensors_of(header).values())
    header[name + chance.choice(["", "2", ".bias", "_scale"])] = {
        "dtype": "F32",
        "shape": chance.choice([[0], [0, 64], []]),
        "data_offsets": [end, end],
    }


def retype(header: Header, name: str, chance: random.Random) -> None:
    header[name]["dtype"] = chance.choice([*DTYPES, *JUNK])


def reshape(header: Header, name: str, chance: random.Random) -> None:
    shape = header[name]["shape"]
    place = chance.randrange(len(shape))
    changed = list(shape)
    changed[place] = chance.choice([*HUGE, shape[place] - 1, shape[place] + 1, 2 * shape[place]])
    header[name]["shape"] = chance.choice([changed, changed, [1, *shape], shape[:-1], "64", None])


def refold(header: Header, name: str, chance: random.Random) -> None:
    """Another shape of as many numbers."""
    shape = header[name]["shape"]
    header[name]["shape"] = chance.choice(
        [shape[::-1], [*shape, 1], [shape[0] // 2, 2, *shape[1:]], [-shape[0], *shape[1:]]]
    )


def move(header: Header, name: str, chance: random.Random) -> None:
    begin, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = chance.choice(
        [
            [begin + 4, end + 4],
            [begin - 4, end - 4],
            [begin, end + chance.choice([-4, 1, 4])],
            [end, begin],
            [begin, chance.choice(HUGE)],
            [chance.choice(HUGE), end],
            [begin],
            [begin, end, end],
            None,
            "0:4",
        ]
    )


def omit(header: Header, name: str, chance: random.Random) -> None:
    del header[name][chance.choice(["dtype", "shape", "data_offsets"])]


def replace_fields(header: Header, name: str, chance: random.Random) -> None:
    header[name] = chance.choice([None, [], 3, "F32", {}])


def regard(header: Header, name: str, chance: random.Random) -> None:
    """What no reader has to mind."""
    header["__metadata__"] = chance.choice([{}, {"format": "np"}, {"format": "pt", "x": "y"}, None])
    header[name] = header.pop(name)


def spoil_metadata(header: Header, name: str, chance: random.Random) -> None:
    header["__metadata__"] = chance.choice([{"x": 3}, {"x": None}, {"x": {}}, [], 3, "pt"])


CHANGES = [
    rename,
    lose,
    add,
    retype,
    reshape,
    refold,
    move,
    omit,
    replace_fields,
    regard,
    spoil_metadata,
]


def tensors_of(header: Header) -> Header:
    return {name: fields for name, fields in header.items() if name != "__metadata__"}


def damaged(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """The content of a safetensors file after one damage, and what it was."""
    (length,) = struct.unpack("<Q", content[:8])
    raw, weights = content[8 : 8 + length], content[8 + length :]
    change = chance.choice([*CHANGES, None])
    if change is not None:
        header = json.loads(raw)
        name = chance.choice(sorted(tensors_of(header)))
        change(header, name, chance)
        changed = json.dumps(header).encode()
        return struct.pack("<Q", len(changed)) + changed + weights, f"{change.__name__} {name}"
    kind = chance.choice(["bit", "bit", "bit", "space", "cut", "more", "length", "twice", "lfs"])
    if kind == "bit":
        place = chance.randrange(8 + length)
        bit = 1 << chance.randrange(8)
        return content[:place] + bytes([content[place] ^ bit]) + content[
            place + 1 :
        ], f"bit {place}"
    if kind == "space":
        changed = chance.choice([b" ", b"\n", b"\xef\xbb\xbf"]) + raw
        return struct.pack("<Q", len(changed)) + changed + weights, kind
    if kind == "cut":
        size = chance.choice([0, 3, 8, chance.randrange(len(content)), len(content) - 1])
        return content[:size], f"cut at {size}"
    if kind == "more":
        return content + bytes(chance.choice([1, 4, 4096])), kind
    if kind == "length":
        other = chance.choice([0, 1, length - 1, length + 1, length + 8, 2**31, 2**63, 2**64 - 1])
        return struct.pack("<Q", other) + content[8:], f"length {other}"
    if kind == "lfs":
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", kind
    name = chance.choice(sorted(tensors_of(json.loads(raw))))
    again = json.dumps({name: json.loads(raw)[name]}).encode()
    changed = again[:-1] + b", " + raw[1:]
    return struct.pack("<Q", len(changed)) + changed + weights, f"twice {name}"


def outcome(folder: Path, backend: str, route: str) -> list[int] | str:
    """The tokens that follow a prompt, or why the folder is refused."""
    config = EngineConfig(
        folder, "x", dtype="float32", device="cpu", backend=backend, route=route, num_threads=1
    )
    try:
        (output,) = LocalGenerator(create_engine(config)).generate([LocalRequest(PROMPT, 6)])
    except UnsupportedModel as error:
        assert "\n" not in error.message and str(folder) in error.message
        return "refused"
    return output.token_ids


@pytest.mark.parametrize(
    ("name", "share"), [("llama", 4), ("mistral", 4), ("qwen3", 4), ("phi3", 16)]
)
def test_one_damage_of_a_header_is_refused_or_makes_no_difference(
    tiny, tmp_path, chance, name, share
):
    whole = (tiny(name).path / "model.safetensors").read_bytes()
    shutil.copy(tiny(name).path / "config.json", tmp_path)
    expected = tiny(name).greedy(PROMPT, 6)
    num_refused = num_same = 0

    for _ in range(NUM_DAMAGES // share):
        content, what = damaged(whole, chance)
        (tmp_path / "model.safetensors").write_bytes(content)
        outcomes = [outcome(tmp_path, backend, "auto") for backend in BACKENDS]
        try:
            check_checkpoint(tmp_path)
            outcomes.append(expected)
        except UnsupportedModel as error:
            assert "\n" not in error.message
            outcomes.append("refused")
        assert outcomes in ([expected] * len(outcomes), ["refused"] * len(outcomes)), what
        num_refused += outcomes[0] == "refused"
        num_same += outcomes[0] == expected

    print(f"{num_refused} refused, {num_same} the same")
    assert num_refused > num_same > 0


@pytest.mark.parametrize("num_blanks", range(1, 9))
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_tensors_may_begin_anywhere(tiny, tmp_path, name, num_blanks):
    whole = (tiny(name).path / "model.safetensors").read_bytes()
    shutil.copy(tiny(name).path / "config.json", tmp_path)
    (length,) = struct.unpack("<Q", whole[:8])
    moved = struct.pack("<Q", length + num_blanks) + whole[8 : 8 + length] + b" " * num_blanks
    (tmp_path / "model.safetensors").write_bytes(moved + whole[8 + length :])

    for backend in BACKENDS:
        assert outcome(tmp_path, backend, "auto") == tiny(name).greedy(PROMPT, 6)


def lost_shard(folder: Path) -> None:
    max(folder.glob("*.safetensors")).unlink()


def edit_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX_FILE).read_text())
        change(index["weight_map"])
        (folder / INDEX_FILE).write_text(json.dumps(index))

    return apply


def copied_shard(folder: Path) -> None:
    shutil.copy(min(folder.glob("*.safetensors")), folder / "more.safetensors")
    edit_index(lambda places: places.update(x="more.safetensors"))(folder)


def copied_shard_without_index(folder: Path) -> None:
    shutil.copy(min(folder.glob("*.safetensors")), folder / "more.safetensors")
    (folder / INDEX_FILE).unlink()


def cut_shard(folder: Path) -> None:
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lost_shard, "cannot read .*safetensors: .*No such file"),
        (cut_shard, "bytes where its header says"),
        (copied_shard, "tensor '.*' is in both model-00001-of-.* and more.safetensors"),
        (copied_shard_without_index, "is in both"),
        (edit_index(lambda places: places.update(x="gone.safetensors")), "cannot read .*gone"),
        (edit_index(lambda places: places.update(x="../x.safetensors")), "no file of its folder"),
        (edit_index(lambda places: places.update(x=3)), "names 3, which is no file"),
        (edit_index(dict.clear), "has no weight_map"),
        (lambda folder: (folder / INDEX_FILE).write_text("[]"), "holds no JSON object"),
        (lambda folder: (folder / INDEX_FILE).write_text("{"), "cannot read"),
        (lambda folder: (folder / INDEX_FILE).write_text("{}"), "has no weight_map"),
    ],
)
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_damaged_shards_are_named(tiny, tmp_path, name, damage, reason):
    tiny(name).model.save_pretrained(tmp_path, max_shard_size="100KB")
    damage(tmp_path)

    for backend in BACKENDS:
        config = EngineConfig(tmp_path, "x", device="cpu", backend=backend, num_threads=1)
        with pytest.raises(UnsupportedModel, match=reason) as refusal:
            create_engine(config)
        assert "\n" not in refusal.value.message
    with pytest.raises(UnsupportedModel, match=reason):
        check_checkpoint(tmp_path)


def test_pointer_of_git_lfs_is_named(tiny, tmp_path):
    shutil.copy(tiny("llama").path / "config.json", tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(pointer)

    with pytest.raises(UnsupportedModel, match="model.safetensors: a git-lfs pointer, not the"):
        check_checkpoint(tmp_path)
