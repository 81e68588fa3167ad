"""The Makefile and the look at the machine before set-up."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
TARGETS = [
    "help",
    "setup",
    "run",
    "test",
    "test-all",
    "lint",
    "type",
    "proto",
    "bench",
    "bench-claims",
    "trace-ui",
    "clean",
]


@pytest.fixture
def preflight(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "scripts" / "preflight.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "preflight", module)
    spec.loader.exec_module(module)
    return module


def make(*arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # `make test ARGS=...` hands its variables on to every make below it.
    handed_on = ("MAKE", "MFLAGS", "ARGS")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(handed_on)}
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout


def test_help_is_the_default_and_names_every_target() -> None:
    shown = make()

    assert [line.split()[0] for line in shown.splitlines()] == TARGETS


def extras_of(shown: str) -> list[str]:
    """The extras that the commands shown would install."""
    return re.findall(r"scripts/install\.py (\S+)", shown)


def touch_stamps(shown: str) -> None:
    """Does of the commands shown what says that they went well."""
    (stamps,) = re.findall(r"&& touch (.+)", shown)
    for stamp in stamps.split():
        Path(stamp).touch()


@pytest.mark.parametrize(
    ("target", "extras"),
    [
        *((target, "all") for target in ("run", "trace-ui")),
        *((target, "all,dev") for target in ("setup", "test", "test-all", "lint", "type")),
    ],
)
def test_target_installs_what_it_needs_and_only_once(
    tmp_path: Path, target: str, extras: str
) -> None:
    first = make("-n", target, f"VENV={tmp_path}")
    assert extras_of(first) == [extras]

    touch_stamps(first)
    assert extras_of(make("-n", target, f"VENV={tmp_path}")) == []
    assert extras_of(make("-n", "run", f"VENV={tmp_path}")) == []
    left_for_tests = [] if extras == "all,dev" else ["all,dev"]
    assert extras_of(make("-n", "test", f"VENV={tmp_path}")) == left_for_tests


def test_another_pyproject_is_installed_again(tmp_path: Path) -> None:
    touch_stamps(make("-n", "setup", f"VENV={tmp_path}"))

    assert extras_of(make("-n", "run", f"VENV={tmp_path}", "SUM=1")) == ["all"]


def test_torch_of_the_cpu_comes_from_its_own_index_if_asked_for(tmp_path: Path) -> None:
    plain = make("-n", "run", f"VENV={tmp_path}")
    asked = make("-n", "run", f"VENV={tmp_path}", "TORCH=cpu")

    assert "index" not in plain
    assert "install.py all --extra-index-url https://download.pytorch.org/whl/cpu" in asked
    assert '--torch "cpu"' in asked
    with pytest.raises(subprocess.CalledProcessError) as caught:
        make("-n", "run", f"VENV={tmp_path}", "TORCH=gpu")
    assert "TORCH=gpu is unknown: TORCH=cpu" in caught.value.stderr


def test_installer_runs_before_anything_is_installed(tmp_path: Path) -> None:
    """A bare Python has its pip asked; here it is one that fails, and its words are shown."""
    (tmp_path / "pip.py").write_text(
        "import sys\nprint('Collecting', sys.argv[-1])\nprint('no room left')\nsys.exit(3)\n"
    )
    script = ROOT / "scripts" / "install.py"
    code = (
        f"import runpy, sys; sys.prefix = {str(tmp_path)!r}; sys.argv = ['x', 'all', '--no-deps'];"
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    # Without site-packages; the child has the fake pip by its path.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    log = tmp_path / "install.log"
    assert log.read_text() == "Collecting --no-deps\nno room left\n"
    assert "no room left" in done.stderr and str(log) in done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stdout.splitlines()
    assert str(log) in line


def test_another_python_can_be_chosen(tmp_path: Path) -> None:
    shown = make("-n", "setup", "PYTHON=python3.99", f"VENV={tmp_path}")

    assert "python3.99 -m venv" in shown
    assert "python3.99 scripts/preflight.py" in shown


def test_preflight_says_what_is_downloaded_and_imports_nothing_of_ours(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "scripts/preflight.py"), "--venv", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert shown.returncode == 0, shown.stderr
    assert "To be downloaded, once:" in shown.stdout
    assert "MB" in shown.stdout


def test_preflight_refuses_an_old_python(
    preflight: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "MIN_PYTHON", (99, 0))

    (failure,) = preflight.check_python()

    assert "99.0 or newer" in failure
    assert "PYTHON=" in failure


def test_preflight_warns_of_a_busy_port(
    preflight: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(preflight, "PORTS", ((port, "--http-port"),))

        (warning,) = preflight.check_ports()

    assert str(port) in warning
    assert "--http-port" in warning


def test_preflight_warns_of_too_little_disk(
    preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = preflight.CUDA.disk_bytes - 1
    usage = shutil._ntuple_diskusage(free * 2, free, free)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage)
    venv = str(tmp_path / "not" / "there")

    assert preflight.check_disk(venv, (preflight.CPU,)) == []
    (warning,) = preflight.check_disk(venv, (preflight.CPU, preflight.CUDA))
    assert warning == "10.0 GB of disk are free, about 10 GB are needed with torch's CUDA build"


@pytest.mark.parametrize(
    ("asked", "system", "places", "builds"),
    [
        ("", "linux", [], ["CUDA"]),
        ("cpu", "linux", [], ["CPU"]),
        ("cpu", "linux", ["index-url"], ["CPU"]),
        ("", "linux", ["index-url"], ["CPU", "CUDA"]),
        ("", "darwin", [], ["CPU"]),
        ("", "darwin", ["find-links"], ["CPU"]),
    ],
)
def test_preflight_knows_which_torch_pip_takes(
    preflight: ModuleType, asked: str, system: str, places: list[str], builds: list[str]
) -> None:
    found = preflight.torch_builds(asked, system, places)

    assert [build.name.split()[0] for build in found] == builds
    assert all(build.download in preflight.describe(found, places) for build in found)


@pytest.mark.parametrize(
    ("environ", "text", "places"),
    [
        ({}, "", []),
        ({"PIP_INDEX_URL": "https://mirror.example/simple"}, "", ["index-url"]),
        ({"PIP_EXTRA_INDEX_URL": "https://a.example"}, "", ["extra-index-url"]),
        ({"PIP_INDEX_URL": ""}, "[global]\nindex-url = https://mirror.example", ["index-url"]),
        ({}, "[global]\nindex_url = https://mirror.example/simple", ["index-url"]),
        ({}, "[global]\nindex-url =", []),
        ({}, "[install]\nfind-links = /wheels", ["find-links"]),
        ({}, "[list]\nfind-links = /wheels", []),
        ({}, "[global]\ntimeout = 60", []),
        ({}, "no settings file [", []),
    ],
)
def test_preflight_reads_where_pip_takes_packages_from(
    preflight: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environ: dict[str, str],
    text: str,
    places: list[str],
) -> None:
    monkeypatch.setattr(preflight, "SYSTEM_FILES", ())
    file = tmp_path / "pip.conf"
    file.write_text(text)
    bare = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": str(file)}

    assert preflight.pip_places(bare | environ) == places


def test_preflight_prints_nothing_that_cannot_be_typed(preflight: ModuleType) -> None:
    for text in (preflight.DOWNLOADS, preflight.CPU_HINT):
        assert not re.search(r"<[^>]+>", text)
    assert "make run TORCH=cpu" in preflight.CPU_HINT


def test_readme_and_preflight_agree_on_disk_and_memory(preflight: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()

    assert f"{preflight.CPU.disk_bytes // preflight.GB} GB of disk" in readme
    assert f"{preflight.CUDA.disk_bytes // preflight.GB} GB with" in readme
    assert f"{preflight.MIN_MEMORY_BYTES // preflight.GB} GB of memory" in readme
