"""Building and choosing the kernels: what is built once, what is refused, what is said."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import replace

import pytest

from millrace.config.home import millrace_home
from millrace.core.errors import ConfigError
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.kernels.cpu import build, load
from millrace.engine.kernels.cpu.build import (
    SOURCES,
    build_library,
    can_build,
    find_compiler,
    ship_library,
    shipped_library,
)
from millrace.engine.kernels.cpu.instruction_paths import (
    PATHS,
    choose_path,
    cpu_flags,
    paths_of_machine,
)
from millrace.engine.kernels.cpu.library import Kernels
from millrace.engine.kernels.cpu.load import default_cache_dir
from tests.unit.engine.conftest import NEEDS_KERNELS
from tests.unit.engine.cpu.kernel_runner import CROSS_COMPILER

BY_NAME = {path.name: path for path in PATHS}
NEEDS_CROSS = pytest.mark.skipif(
    shutil.which(CROSS_COMPILER) is None, reason=f"there is no {CROSS_COMPILER}"
)
COMPILERS = [
    *(pytest.param(path.name, id=path.name) for path in PATHS if path.machine == "x86_64"),
    *(
        pytest.param(path.name, id=path.name, marks=NEEDS_CROSS)
        for path in PATHS
        if path.machine == "aarch64"
    ),
]


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A compiler that writes its arguments to its output and counts its calls."""
    script = tmp_path / "bin" / "c++"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "fake ${FAKE_VERSION:-1}" && exit 0\n'
        f'echo called >> "{tmp_path}/calls"\n'
        '[ -n "$FAKE_FAILS" ] && echo "error: no such header" >&2 && exit 1\n'
        'for word; do [ "$last" = -o ] && echo "$@" > "$word"; last=$word; done\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return lambda: len((tmp_path / "calls").read_text().splitlines())


@pytest.mark.parametrize("name", COMPILERS)
def test_sources_compile_for_every_path_without_a_warning(name, tmp_path):
    path = BY_NAME[name]
    compiler = CROSS_COMPILER if path.machine == "aarch64" else find_compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    for source in sorted(SOURCES.glob("*.cpp")):
        done = subprocess.run(
            [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
            + [*path.compiler_flags, str(source)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_library_is_built_once_per_source_flags_and_compiler(fake_compiler, tmp_path, monkeypatch):
    path = BY_NAME["avx2"]
    said: list[str] = []
    first = build_library(path, tmp_path / "kernels", said.append)

    assert build_library(path, tmp_path / "kernels") == first
    assert fake_compiler() == 1
    assert said == ["building the CPU kernels for avx2, about 10 s"]
    assert "-mavx2" in first.read_text()

    others = [build_library(replace(path, compiler_flags=("-mfma",)), tmp_path / "kernels")]
    monkeypatch.setenv("FAKE_VERSION", "2")
    others.append(build_library(path, tmp_path / "kernels"))
    shutil.copytree(SOURCES, tmp_path / "src")
    (tmp_path / "src" / "team.h").write_text("// changed")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    others.append(build_library(path, tmp_path / "kernels"))
    assert len({first, *others}) == 4
    assert fake_compiler() == 4


def test_compiler_that_fails_leaves_no_library_and_its_words(fake_compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAILS", "1")

    with pytest.raises(ConfigError, match="do not compile for avx2: error: no such header"):
        build_library(BY_NAME["avx2"], tmp_path / "kernels")

    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["build.lock"]
    monkeypatch.delenv("FAKE_FAILS")
    assert build_library(BY_NAME["avx2"], tmp_path / "kernels").is_file()


def test_half_written_library_of_a_killed_build_is_not_used(fake_compiler, tmp_path):
    built = build_library(BY_NAME["avx2"], tmp_path / "kernels")
    built.rename(built.with_suffix(".12345.part"))

    assert build_library(BY_NAME["avx2"], tmp_path / "kernels") == built
    assert fake_compiler() == 2


def test_library_that_cannot_be_loaded_is_a_clear_error(tmp_path):
    (tmp_path / "broken.so").write_bytes(b"\x7fELF")

    with pytest.raises(ConfigError, match=r"cannot load the CPU kernels: .*broken\.so"):
        Kernels(tmp_path / "broken.so", "avx2", 1)


def test_folder_that_takes_no_file_is_a_clear_error(fake_compiler, tmp_path):
    (tmp_path / "kernels").write_text("a file")

    with pytest.raises(ConfigError, match="cannot keep the CPU kernels"):
        build_library(BY_NAME["avx2"], tmp_path / "kernels")


def remove_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", os.devnull)


@pytest.fixture
def shipping_place(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "shipped"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_shipped_libraries_serve_every_path_without_a_compiler(
    fake_compiler, shipping_place, tmp_path, monkeypatch, machine
):
    paths = paths_of_machine(machine)
    shipped = [ship_library(path) for path in paths]
    assert [ship_library(path) for path in paths] == shipped
    assert fake_compiler() == len(paths) > 1

    remove_compiler(monkeypatch)
    assert [build_library(path, tmp_path / "kernels") for path in paths] == shipped
    assert all(can_build(path) for path in paths)
    assert all(
        set(path.compiler_flags) <= set(path_.read_text().split())
        for path, path_ in zip(paths, shipped, strict=True)
    )
    assert not (tmp_path / "kernels").exists()


def test_library_shipped_with_other_sources_or_flags_is_not_used(
    fake_compiler, shipping_place, tmp_path, monkeypatch
):
    path = BY_NAME["avx2"]
    ship_library(path)
    remove_compiler(monkeypatch)
    other = replace(path, compiler_flags=("-mfma",))
    assert shipped_library(other) is None and not can_build(other)

    shutil.copytree(SOURCES, tmp_path / "src")
    (tmp_path / "src" / "team.h").write_text("// changed")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    assert shipped_library(path) is None and not can_build(path)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler was found"):
        build_library(path, tmp_path / "kernels")


def test_shipping_without_a_compiler_is_refused(shipping_place, monkeypatch):
    remove_compiler(monkeypatch)

    with pytest.raises(ConfigError, match=r"no C\+\+ compiler was found"):
        ship_library(BY_NAME["avx2"])
    assert not shipping_place.exists()


ALL_X86 = frozenset().union(*(path.cpu_flags for path in PATHS if path.machine == "x86_64"))


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", ALL_X86, "amx"),
        ("x86_64", ALL_X86 - {"amx_int8"}, "avx512_bf16"),
        ("x86_64", ALL_X86 - {"amx_tile", "avx512_bf16"}, "avx512"),
        ("x86_64", ALL_X86 - {"avx512_vnni"}, "avx2"),
        ("AMD64", frozenset({"avx2", "fma", "f16c"}), "avx2"),
        ("x86_64", frozenset({"avx2"}), None),
        ("aarch64", frozenset({"asimd", "asimddp"}), "neon_dotprod"),
        ("arm64", frozenset({"asimd"}), "neon"),
        ("riscv64", frozenset(), None),
    ],
)
def test_best_path_that_the_machine_has_is_chosen(machine, flags, expected):
    path = choose_path("auto", flags, machine)

    assert (path.name if path else None) == expected


def test_path_that_the_machine_lacks_is_refused_with_what_it_lacks():
    with pytest.raises(ConfigError, match="'amx'; this machine lacks amx_bf16, amx_int8") as error:
        choose_path("amx", ALL_X86 - {"amx_int8", "amx_bf16"}, "x86_64")
    assert error.value.field == "instruction_path"
    with pytest.raises(ConfigError, match="'neon'; this machine lacks a aarch64 machine"):
        choose_path("neon", ALL_X86 | {"asimd"}, "x86_64")
    with pytest.raises(ConfigError, match="'sse'; known are auto, amx, avx512_bf16"):
        choose_path("sse", ALL_X86, "x86_64")


def test_flags_are_read_as_linux_writes_them(tmp_path):
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fma avx2\n\nflags\t\t: none\n")
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: asimd asimddp\n")

    assert cpu_flags(tmp_path / "x86") == {"fma", "avx2"}
    assert cpu_flags(tmp_path / "arm") == {"asimd", "asimddp"}


@pytest.fixture
def no_compiler(monkeypatch):
    remove_compiler(monkeypatch)


def config_for(tiny, **settings):
    folder = tiny("llama").path
    return EngineConfig(folder, "x", device="cpu", dtype="float32", num_threads=1, **settings)


def test_auto_without_a_compiler_runs_on_torch_and_says_so(tiny, no_compiler):
    said: list[str] = []

    engine = create_engine(config_for(tiny), said.append)

    assert type(engine._runner._backend).__name__ == "TorchAttention"
    notice = "the CPU kernels are not used, plain torch runs instead: no C++ compiler was found"
    assert [text for text in said if text.startswith(notice)]


def test_auto_with_a_folder_that_takes_no_file_runs_on_torch(tiny, tmp_path):
    (tmp_path / "kernels").write_text("a file")
    said: list[str] = []

    engine = create_engine(config_for(tiny, cache_dir=tmp_path), said.append)

    assert type(engine._runner._backend).__name__ == "TorchAttention"
    assert any("plain torch runs instead" in text for text in said)


@pytest.mark.parametrize(
    "settings", [{"backend": "cpu"}, {"instruction_path": "avx2"}], ids=["backend", "path"]
)
def test_kernels_asked_for_without_a_compiler_are_refused(tiny, no_compiler, monkeypatch, settings):
    monkeypatch.setattr(load, "choose_path", lambda asked: BY_NAME["avx2"])

    with pytest.raises(ConfigError, match="no C\\+\\+ compiler was found"):
        create_engine(config_for(tiny, **settings))


@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "cpu", "block_size": 8}, "needs a multiple of 32"),
        ({"backend": "cpu", "instruction_path": "sse2"}, "known are auto, amx"),
        ({"instruction_path": "neon" if os.uname().machine == "x86_64" else "amx"}, "lacks a"),
        ({"backend": "torch", "quantization": "int8"}, "need the cpu backend"),
        ({"backend": "torch", "quantization": "int4"}, "need the cpu backend"),
        ({"backend": "torch", "kv_dtype": "int8"}, "need the cpu backend"),
        ({"block_size": 8, "quantization": "int8"}, "need the cpu backend"),
        ({"backend": "vulkan"}, "known are cpu, torch"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(tiny, settings, message):
    with pytest.raises(ConfigError, match=message):
        create_engine(config_for(tiny, **settings))


@NEEDS_KERNELS
def test_half_precision_is_refused_by_the_cpu_backend(tiny):
    config = replace(config_for(tiny, backend="cpu"), dtype="float16")

    with pytest.raises(ConfigError, match="computes in float32 or bfloat16") as error:
        create_engine(config)
    assert error.value.field == "dtype"


@NEEDS_KERNELS
def test_auto_takes_the_kernels_where_they_run(tiny):
    engine = create_engine(config_for(tiny))

    assert type(engine._runner._backend).__name__ == "CpuAttention"


@NEEDS_KERNELS
def test_engine_without_a_compiler_takes_the_shipped_kernels(tiny, shipping_place, monkeypatch):
    path = choose_path("auto")
    assert path is not None
    library = build._shipped_place(path)
    library.parent.mkdir()
    shutil.copy(build_library(path, default_cache_dir() / "kernels"), library)
    remove_compiler(monkeypatch)

    engine = create_engine(config_for(tiny))

    assert type(engine._runner._backend).__name__ == "CpuAttention"
    assert build_library(path, shipping_place) == library


def test_every_path_of_an_architecture_is_listed_for_its_machines():
    for spellings in (("x86_64", "AMD64"), ("aarch64", "arm64")):
        wanted = [path for path in PATHS if path.machine == spellings[0] and not path.for_tests]
        assert [paths_of_machine(name) for name in spellings] == [wanted, wanted]
    assert paths_of_machine("riscv64") == []


@pytest.mark.parametrize(
    "environ",
    [
        {"MILLRACE_HOME": "/srv/millrace"},
        {"MILLRACE_HOME": "~/state", "HOME": "/home/me"},
        {"MILLRACE_HOME": "state", "XDG_DATA_HOME": "/data"},
        {"XDG_DATA_HOME": "/data", "XDG_CACHE_HOME": "/cache", "HOME": "/home/me"},
        {"XDG_CACHE_HOME": "/cache", "HOME": "/home/me"},
    ],
)
def test_engine_alone_keeps_what_it_makes_where_a_stack_does(monkeypatch, environ):
    for name in ("MILLRACE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    assert default_cache_dir() == millrace_home().cache


def test_folder_for_a_user_without_any_is_asked_for(monkeypatch):
    monkeypatch.setenv("MILLRACE_HOME", "~no-such-user/state")

    with pytest.raises(ConfigError, match="set MILLRACE_HOME"):
        default_cache_dir()
