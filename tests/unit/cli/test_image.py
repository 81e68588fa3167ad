"""The image as its Dockerfile and the compose files describe it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]
COMPILERS = ("g++", "clang")


class Stage(NamedTuple):
    """What one FROM ... AS begins."""

    base: str
    steps: list[tuple[str, str]]

    def words_of(self, instruction: str) -> list[str]:
        return [words for name, words in self.steps if name == instruction]


def read_stages(text: str) -> dict[str, Stage]:
    """Stages by name; a step is an instruction and the words behind it, on one line."""
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for step in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        instruction, _, words = step.partition(" ")
        if instruction == "FROM":
            base, _, name = words.partition(" AS ")
            current = stages[name] = Stage(base, [])
        else:
            assert current is not None
            current.steps.append((instruction, words))
    return stages


STAGES = read_stages((ROOT / "deploy" / "docker" / "Dockerfile").read_text())


def compose(name: str) -> dict[str, Any]:
    document: dict[str, Any] = importlib.import_module("yaml").safe_load((ROOT / name).read_text())
    return document


def position(steps: list[str], text: str) -> int:
    return next(number for number, step in enumerate(steps) if text in step)


def test_kernels_of_every_path_are_built_where_the_compiler_is_and_copied() -> None:
    build, runtime = STAGES["build"], STAGES["cpu"]
    runs = build.words_of("RUN")
    kernels = position(runs, "millrace kernels --all-paths")
    assert position(runs, "install --yes --no-install-recommends g++") < kernels
    assert position(runs, "pip install") < kernels
    # They lie inside the environment, which is copied whole.
    assert "--from=build /opt/millrace /opt/millrace" in runtime.words_of("COPY")
    assert build.base == runtime.base, "the libraries are linked to those of another system"


def test_runtime_stages_have_no_compiler_and_run_as_no_root() -> None:
    for name in ("cpu", "gpu"):
        text = " ".join(words for _, words in STAGES[name].steps)
        assert not any(compiler in text for compiler in (*COMPILERS, "apt-get")), name
    users = STAGES["cpu"].words_of("USER") + STAGES["gpu"].words_of("USER")
    assert users == ["millrace"]


def test_gpu_stage_refuses_a_torch_without_cuda() -> None:
    gpu = STAGES["gpu"]
    assert gpu.base == "cpu"
    assert position(gpu.words_of("RUN"), "torch.version.cuda") == 0
    assert any("NVIDIA_DRIVER_CAPABILITIES=compute,utility" in env for env in gpu.words_of("ENV"))


def test_compose_builds_stages_that_exist_under_names_of_their_own() -> None:
    base, gpu = compose("docker-compose.yml"), compose("docker-compose.gpu.yml")
    own = [service for service in base["services"].values() if "build" in service]
    assert {(service["image"], service["build"]["target"]) for service in own} == {
        ("millrace:cpu", "cpu")
    }
    assert {"cpu", "gpu"} <= STAGES.keys()
    worker = gpu["services"]["worker"]
    assert (worker["image"], worker["build"]["target"]) == ("millrace:gpu", "gpu")


def test_gpu_variant_reserves_a_device_for_the_worker_alone() -> None:
    services = compose("docker-compose.gpu.yml")["services"]
    assert list(services) == ["worker"]
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    # A worker that finds no GPU says so instead of serving from the CPU.
    assert services["worker"]["environment"] == {
        "MILLRACE_WORKER_DEVICE": "${MILLRACE_WORKER_DEVICE:-cuda}"
    }
