"""GGUF models in one file or split over several that lie side by side."""

from __future__ import annotations

import re
from pathlib import Path

from .gguf_header import GgufHeader, shown
from .gguf_metadata import GgufMetadata

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.I)
_MAX_PARTS = 99_999


def whole_stem(path: Path) -> str:
    """The name of a file without its ending, and without which part of how many it is."""
    match = _PART_NAME.fullmatch(path.name)
    return match["stem"] if match else path.stem


def read_parts(path: Path) -> list[GgufHeader]:
    """The headers of the model that `path` is, or is any part of; the first has the keys.

    Raises UnsupportedModel for a file that is no GGUF file, and for parts that are missing or of
    another model.
    """
    header = GgufHeader(path)
    metadata = GgufMetadata(header)
    count = metadata.try_whole("split.count", most=_MAX_PARTS) or 1
    if count == 1:
        return [header]
    parts = [GgufHeader(part) for part in _part_paths(header, metadata, count)]
    for number, part in enumerate(parts):
        _check_part(GgufMetadata(part), number, count)
    _check_tensors(parts)
    return parts


def _part_paths(header: GgufHeader, metadata: GgufMetadata, count: int) -> list[Path]:
    path = header.path
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        number = metadata.whole("split.no", most=count - 1) + 1
        raise header.fault(
            f"part {number} of {count} (split.count); the others are found by its name, which "
            f"must end in -{number:05}-of-{count:05}.gguf"
        )
    names = [f"{match['stem']}-{n + 1:05}-of-{count:05}{match['end']}" for n in range(count)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise header.fault(
            f"a part of {count} (split.count); beside it {missing[0]}{others} must lie, "
            "which cannot be found"
        )
    return [path.parent / name for name in names]


def _check_part(metadata: GgufMetadata, number: int, count: int) -> None:
    for key, expected in (("split.count", count), ("split.no", number)):
        if metadata.whole(key) != expected:
            raise metadata.wrong(key, f"its name and the other parts say {expected}")


def _check_tensors(parts: list[GgufHeader]) -> None:
    names: dict[str, GgufHeader] = {}
    for part in parts:
        for tensor in part.tensors:
            if tensor.name in names:
                raise part.fault(
                    f"GGUF tensor {shown(tensor.name)} stands in {names[tensor.name].path.name} too"
                )
            names[tensor.name] = part
    metadata = GgufMetadata(parts[0])
    declared = metadata.try_whole("split.tensors.count")
    if declared not in (None, len(names)):
        raise metadata.wrong("split.tensors.count", f"but its parts have {len(names)} tensors")
