"""Split GGUF files: joined where every part is there, refused by what is missing otherwise."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from millrace.config.home import Home
from millrace.core.errors import UnsupportedModel
from millrace.engine.models.checkpoint_check import check_checkpoint
from millrace.hub.add import add_model
from millrace.hub.gguf_import import convert_gguf
from tests.unit.hub.gguf_document import I32, TEXT, U32, Document, Tensor, tiny_document

COUNT = 3
U16 = 2


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A model in three files, the second without a tensor; beside it `whole.gguf`, the same."""
    document = tiny_document()
    document.write(tmp_path / "whole.gguf")
    return write_parts(tmp_path, document)


def write_parts(folder: Path, document: Document, *, end: str = ".gguf") -> list[Path]:
    tensors = [document.tensors[:7], [], document.tensors[7:]]
    paths = []
    for number in range(COUNT):
        keys = {"split.no": (U16, number), "split.count": (U16, COUNT)}
        keys["split.tensors.count"] = (I32, len(document.tensors))
        if number == 0:
            keys = document.keys | keys
        path = folder / f"model-{number + 1:05}-of-{COUNT:05}{end}"
        paths.append(replace(document, keys=keys, tensors=tensors[number]).write(path))
    return paths


def converted(path: Path, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    convert_gguf(path, folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("number", range(COUNT))
def test_parts_are_joined_whichever_is_named(
    parts: list[Path], tmp_path: Path, number: int
) -> None:
    whole = converted(tmp_path / "whole.gguf", tmp_path / "whole")

    assert converted(parts[number], tmp_path / "joined") == whole


def test_joined_model_is_named_without_the_number_of_a_part(
    parts: list[Path], tmp_path: Path
) -> None:
    entry = add_model(parts[1], Home(tmp_path / "home"))

    assert entry.name == "model"
    assert check_checkpoint(entry.path) == "native"


@pytest.mark.parametrize("end", [".gguf", ".GGUF"])
@pytest.mark.parametrize("missing", range(COUNT))
def test_missing_part_is_named(tmp_path: Path, missing: int, end: str) -> None:
    parts = write_parts(tmp_path, tiny_document(), end=end)
    parts[missing].unlink()

    for path in set(parts) - {parts[missing]}:
        with pytest.raises(UnsupportedModel) as caught:
            converted(path, tmp_path / path.stem)
        assert f"{path}: a part of 3 (split.count); beside it" in caught.value.message
        assert parts[missing].name in caught.value.message


def test_several_missing_parts_are_counted(parts: list[Path], tmp_path: Path) -> None:
    parts[0].unlink()
    parts[2].unlink()

    with pytest.raises(UnsupportedModel, match="model-00001-of-00003.gguf and 1 more must lie"):
        converted(parts[1], tmp_path / "joined")


@pytest.mark.parametrize("name", ["renamed.gguf", "model-00001-of-00002.gguf", "sha256-7f"])
def test_part_under_another_name_is_refused_as_a_part(
    parts: list[Path], tmp_path: Path, name: str
) -> None:
    path = parts[0].rename(tmp_path / name)

    with pytest.raises(UnsupportedModel, match="part 1 of 3 .*must end in -00001-of-00003.gguf"):
        converted(path, tmp_path / "joined")


def test_parts_in_each_others_place_are_refused(parts: list[Path], tmp_path: Path) -> None:
    shutil.copy(parts[2], parts[1])

    with pytest.raises(
        UnsupportedModel, match="'split.no' is 2, its name and the other parts say 1"
    ):
        converted(parts[0], tmp_path / "joined")


def test_part_of_a_model_split_otherwise_is_refused(parts: list[Path], tmp_path: Path) -> None:
    keys = {"split.no": (U16, 1), "split.count": (U16, 4)}
    Document(keys, []).write(parts[1])

    with pytest.raises(UnsupportedModel, match="'split.count' is 4, its name and the other"):
        converted(parts[0], tmp_path / "joined")


def test_part_of_a_model_with_other_tensors_is_refused(parts: list[Path], tmp_path: Path) -> None:
    keys = {"split.no": (U16, 1), "split.count": (U16, COUNT)}
    Document(keys, [Tensor("output_norm.weight", (64,), bytes(256))]).write(parts[1])

    with pytest.raises(
        UnsupportedModel, match="'output_norm.weight' stands in model-00001-of-00003"
    ):
        converted(parts[0], tmp_path / "first")

    Document(keys, [Tensor("more.weight", (64,), bytes(256))]).write(parts[1])
    with pytest.raises(
        UnsupportedModel, match="'split.tensors.count' is 20, but its parts have 21"
    ):
        converted(parts[0], tmp_path / "joined")


@pytest.mark.parametrize("number", range(COUNT))
def test_damage_in_a_part_names_that_part(parts: list[Path], tmp_path: Path, number: int) -> None:
    content = parts[number].read_bytes()
    parts[number].write_bytes(content[: len(content) // 2])

    with pytest.raises(UnsupportedModel) as caught:
        converted(parts[0], tmp_path / "joined")

    assert caught.value.message.startswith(f"{parts[number]}: cut off")


def test_count_of_a_file_that_is_whole_means_nothing(tmp_path: Path) -> None:
    document = tiny_document()
    document.keys["split.count"] = (U32, 1)
    document.keys["general.name"] = (TEXT, "whole")

    assert "config.json" in converted(document.write(tmp_path / "any.gguf"), tmp_path / "whole")
