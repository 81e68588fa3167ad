"""Who may import whom: the picture of docs/architecture.md, kept true."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = (ROOT / "libs" / "millrace", ROOT / "services" / "millrace")
SERVICES = frozenset({"gateway", "tokenizer", "scheduler", "worker", "cache"})
STUBS = ("millrace.v1", "millrace.internal")

# Package → packages of ours that it may import. What is not named here is forbidden.
ALLOWED: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "v1": frozenset(),
    "internal": frozenset({"v1"}),
    "config": frozenset({"core"}),
    "telemetry": frozenset({"core", "config"}),
    "wire": frozenset({"core", "v1", "internal"}),
    "rpc": frozenset({"core", "telemetry", "wire"}),
    "bus": frozenset({"core", "telemetry", "wire", "v1", "internal"}),
    "hub": frozenset({"core", "config", "engine"}),
    "engine": frozenset({"core"}),
    "testing": frozenset({"core", "config", "bus", "rpc", "telemetry", "v1", "internal", "wire"}),
    "cli": frozenset(
        {"bus", "config", "core", "engine", "hub", "internal", "rpc", "telemetry", "v1", "wire"}
    ),
    **{
        service: frozenset({"bus", "config", "core", "rpc", "telemetry", "wire", "internal", "v1"})
        | ({"hub"} if service in ("tokenizer", "worker") else frozenset())
        | ({"engine"} if service == "worker" else frozenset())
        for service in SERVICES
    },
}
STUB_IMPORTERS = frozenset({"wire", "bus", "rpc", "testing", "cli", "v1", "internal"})

# Third-party package → packages of ours that may import it.
THIRD_PARTY: dict[str, frozenset[str]] = {
    "torch": frozenset({"engine", "worker"}),
    "redis": frozenset({"cache"}),
    "nats": frozenset({"bus"}),
    "transformers": frozenset({"engine"}),
    "starlette": frozenset({"gateway"}),
}


def _sources() -> list[Path]:
    return [
        path for root in ROOTS for path in sorted(root.rglob("*.py")) if "_pb2" not in path.name
    ]


def _package(path: Path) -> str:
    root = next(root for root in ROOTS if path.is_relative_to(root))
    return path.relative_to(root).parts[0]


def _imports(path: Path) -> Iterator[str]:
    """Absolute names of everything a module imports, lazily or not."""
    root = next(root for root in ROOTS if path.is_relative_to(root))
    here = ("millrace", *path.relative_to(root).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            yield ".".join(part for part in (base, node.module or "") if part)


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", _sources(), ids=_id)
def test_module_imports_only_layers_below_it(path: Path) -> None:
    package = _package(path)
    for name in _imports(path):
        if name == "millrace":
            pytest.fail("write `from millrace.x.y import Z`, never `from millrace import x`")
        if not name.startswith("millrace."):
            continue
        target = name.split(".")[1]
        assert target == package or target in ALLOWED[package], f"{package} imports {name}"


@pytest.mark.parametrize("path", _sources(), ids=_id)
def test_stubs_are_imported_at_the_edges_only(path: Path) -> None:
    if _package(path) in STUB_IMPORTERS or path.name == "servicer.py":
        return
    if path.name == "__main__.py" and _package(path) in SERVICES:
        return  # it names its servicer's registration function
    stubs = [name for name in _imports(path) if name.startswith(STUBS)]
    assert not stubs


@pytest.mark.parametrize("path", _sources(), ids=_id)
def test_heavy_third_parties_stay_in_their_packages(path: Path) -> None:
    for name in _imports(path):
        allowed = THIRD_PARTY.get(name.split(".")[0])
        assert allowed is None or _package(path) in allowed, f"{_package(path)} imports {name}"


def test_no_module_is_a_dumping_ground() -> None:
    forbidden = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert not [path for path in _sources() if path.stem in forbidden]


def test_namespace_roots_have_no_init_and_share_no_subpackage() -> None:
    names = [
        {child.name for child in root.iterdir() if child.is_dir() and child.name != "__pycache__"}
        for root in ROOTS
    ]
    assert not [root for root in ROOTS if (root / "__init__.py").exists()]
    assert not names[0] & names[1]


def test_modules_import_each_other_without_cycles() -> None:
    modules = {
        ".".join(("millrace", *path.relative_to(root).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for root in ROOTS
        for path in root.rglob("*.py")
        if "_pb2" not in path.name
    }
    edges = {name: _load_time_imports(path, modules) for name, path in modules.items()}
    assert not _cycle(edges)


def _load_time_imports(path: Path, modules: dict[str, Path]) -> set[str]:
    root = next(root for root in ROOTS if path.is_relative_to(root))
    here = ("millrace", *path.relative_to(root).with_suffix("").parts)
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names = {f"{module}.{alias.name}" for alias in node.names} | {module}
            found |= names & modules.keys()
    return found - {".".join(here).removesuffix(".__init__")}


def _cycle(edges: dict[str, set[str]]) -> list[str]:
    finished: set[str] = set()
    trail: list[str] = []

    def visit(name: str) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in finished:
            return []
        trail.append(name)
        for target in sorted(edges[name]):
            if cycle := visit(target):
                return cycle
        trail.pop()
        finished.add(name)
        return []

    for name in sorted(edges):
        if cycle := visit(name):
            return cycle
    return []
