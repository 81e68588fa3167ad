"""The control groups that this process is in, of both versions, as folders to read limits from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .mounts import unescaped

# Of version 1, "memory" or "cpu"; what version 2 is called here.
UNIFIED = ""


@dataclass(frozen=True, slots=True)
class _Mount:
    """A hierarchy at `place`, whose top is the group `root`."""

    place: Path
    root: PurePosixPath


def cgroup_folders(controller: str, proc: Path, cgroup: Path) -> list[Path]:
    """Our group under `controller` (version 1) or `UNIFIED` and its parents, as far as they show.

    A container sees its own group as the top. Where /proc names no mount of the hierarchy it is
    looked for under `cgroup`, by the names that systems give it. Folders need not exist.
    """
    mounts = list(_mounts(controller, proc)) or _usual_mounts(controller, cgroup)
    group = _own_group(controller, proc)
    return [folder for mount in mounts for folder in _from_top(mount, group)]


def _from_top(mount: _Mount, group: PurePosixPath) -> Iterator[Path]:
    folder = mount.place
    yield folder
    # Outside of what is mounted only the top is known: a group of another namespace.
    below = group.relative_to(mount.root).parts if group.is_relative_to(mount.root) else ()
    for part in () if ".." in below else below:
        folder = folder / part
        yield folder


def _own_group(controller: str, proc: Path) -> PurePosixPath:
    """From lines "4:cpu,cpuacct:/group"; version 2 has "0::/group"."""
    for line in _lines(proc / "self" / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controller in controllers.split(","):
            return PurePosixPath("/" + group.strip("/"))
    return PurePosixPath("/")


def _mounts(controller: str, proc: Path) -> Iterator[_Mount]:
    """From lines "36 35 0:30 ROOT PLACE OPTIONS … - cgroup SOURCE rw,cpu,cpuacct"."""
    for line in _lines(proc / "self" / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(" "), (*after.split(" "), "", "", "")[:3]
        is_it = kind == "cgroup2" if controller == UNIFIED else kind == "cgroup"
        if controller != UNIFIED:
            is_it = is_it and controller in options.split(",")
        if is_it and len(fields) > 4:
            yield _Mount(Path(unescaped(fields[4])), PurePosixPath(unescaped(fields[3])))


def _usual_mounts(controller: str, cgroup: Path) -> list[_Mount]:
    """Version 2 lies at the top; version 1 below it, by controller, or by two in one name."""
    if controller == UNIFIED:
        return [_Mount(cgroup, PurePosixPath("/"))]
    names = [controller]
    if cgroup.is_dir():
        names += sorted(
            folder.name
            for folder in cgroup.iterdir()
            if controller in folder.name.split(",") and folder.name != controller
        )
    return [_Mount(cgroup / name, PurePosixPath("/")) for name in names]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
