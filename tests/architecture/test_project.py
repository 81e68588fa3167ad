"""The shape of the project: its top level, its packages, its generated code."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = (
    *("protos", "services", "libs", "deploy", "tests"),
    *("Makefile", "docker-compose.yml", "README.md"),
)
# Distribution → the module that proves its use.
PACKAGES = {
    "grpcio": "grpc",
    "grpcio-tools": "grpc_tools",
    "protobuf": "google.protobuf",
    "torch": "torch",
    "transformers": "transformers",
    "nats-py": "nats",
    "redis": "redis",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "pytest": "pytest",
}


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_top_level_name_exists(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("distribution", PACKAGES)
def test_package_is_pinned_and_used(distribution: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = [*project["dependencies"], *extras]
    assert any(line.startswith(f"{distribution}==") for line in declared)
    module = re.escape(PACKAGES[distribution])
    pattern = re.compile(rf"(?:from|import|-m) {module}\b")
    folders = [ROOT / name for name in ("libs", "services", "tests", "scripts")]
    sources = [path for folder in folders for path in folder.rglob("*.*") if path.is_file()]
    assert any(
        pattern.search(path.read_text(errors="ignore"))
        for path in sources
        if path.suffix in (".py", ".sh")
    )


def test_every_service_has_the_same_first_files() -> None:
    for service in ("gateway", "tokenizer", "scheduler", "worker", "cache"):
        folder = ROOT / "services" / "millrace" / service
        for name in ("__init__.py", "__main__.py", "config.py", "servicer.py"):
            assert (folder / name).is_file(), f"{service} lacks {name}"


def test_stubs_are_current(tmp_path: Path) -> None:
    for package in ("v1", "internal/v1"):
        (tmp_path / "millrace" / package).mkdir(parents=True)
    subprocess.run(
        ["bash", "scripts/protos.sh", str(tmp_path)],
        cwd=ROOT,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        check=True,
    )
    fresh = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*_pb2*")}
    committed = {
        path.relative_to(ROOT / "libs"): path for path in (ROOT / "libs").rglob("*_pb2*.py*")
    }
    committed = {name: path for name, path in committed.items() if path.suffix != ".pyc"}
    assert fresh.keys() == committed.keys()
    for name, path in fresh.items():
        assert path.read_text() == committed[name].read_text(), f"{name}: run `make proto`"


def test_gateway_needs_neither_torch_nor_transformers() -> None:
    script = (
        "import sys; import millrace.gateway.__main__; "
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_python_sources_name_no_place_of_one_machine() -> None:
    pattern = re.compile(r"(?:^|[\s\"'=])/(?:root|home)/\w")
    offenders = [
        path
        for folder in ("libs", "services", "scripts", "deploy")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".toml", ".yml") and pattern.search(path.read_text())
    ]
    assert not offenders
