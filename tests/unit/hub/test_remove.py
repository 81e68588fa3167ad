"""Removing a model: all that belongs to it goes, nothing else, and never while it is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.models import main
from millrace.cli.stack.run_file import new_stack_record, write_run_file
from millrace.config.home import Home
from millrace.core.errors import Conflict, UnknownModel
from millrace.engine.kernels.cpu.library import KINDS
from millrace.hub.add import add_model
from millrace.hub.default_model import WHEEL_NAME
from millrace.hub.manifest import Manifest, folder_name
from millrace.hub.model_cache import old_cache
from millrace.hub.remove import plan_removal, remove_model
from millrace.hub.tokenizer_files import tokenizer_build_of

from .made_files import files_under, write_packed


@pytest.fixture(autouse=True)
def home_in_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(home.root))


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """The pid of a process that serves a folder."""
    code = (
        "import sys; from pathlib import Path; from millrace.engine.served import ServedMark\n"
        "mark = ServedMark(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.communicate(timeout=10)


def own_model(home: Home, model: Path, name: str) -> Path:
    """A model whose files are Millrace's own, as after a pull."""
    folder = home.models / folder_name(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    model.rename(folder)
    Manifest(name, (), "hub:x@1", "mit", ()).save(folder)
    return folder


def test_everything_that_was_made_of_a_model_goes_with_it(
    make_model: Callable[..., Path], home: Home
) -> None:
    folder = own_model(home, make_model("a"), "org/a")
    of_b = own_model(home, make_model("b"), "b")
    (of_b / "tokenizer.json").write_text('{"version": "another"}')
    other = write_packed(home.cache, home.models / "b", "int8")
    before = files_under(home.root)
    old = old_cache()
    assert old is not None
    for cache in (home.cache, old):
        for kind in KINDS:
            write_packed(cache, folder, kind)
    stale = write_packed(home.cache, folder, "bfloat16", 5000)
    os.utime(folder / "config.json", ns=(1, 1))
    fresh = write_packed(home.cache, folder, "bfloat16", 3000)
    unfinished = fresh.with_suffix(f".{os.getpid()}.part")
    unfinished.write_bytes(bytes(10))
    build = tokenizer_build_of(folder, home)
    build.mkdir(parents=True)
    (build / "tokenizer.json").write_bytes(bytes(700))
    assert stale != fresh
    took = sum(files_under(home.root).values()) + sum(files_under(old).values())

    freed = remove_model("org/a", home)

    left = sum(files_under(home.root).values())
    assert freed == took - left
    assert files_under(old) == {}
    assert files_under(home.root).keys() == before.keys() - {
        name for name in before if name.startswith("models/org--a/")
    }
    assert other.is_file()


def test_the_download_of_the_default_model_goes_with_it(tiny_model: Path, home: Home) -> None:
    own_model(home, tiny_model, "smollm2-135m-instruct")
    home.cache.mkdir()
    (home.cache / WHEEL_NAME).write_bytes(bytes(900))
    (home.cache / "partial").mkdir()
    (home.cache / "partial" / WHEEL_NAME).write_bytes(bytes(90))

    assert remove_model("smollm2-135m-instruct", home) > 990
    assert files_under(home.root) == {}


def test_what_two_models_share_stays_until_the_last_is_removed(
    make_model: Callable[..., Path], home: Home
) -> None:
    folder, same = make_model("x/tiny"), make_model("y/tiny", seed=1)
    add_model(folder, home, name="first")
    add_model(folder, home, name="second")
    add_model(same, home, name="third")
    packed = write_packed(home.cache, folder, "int8")
    of_third = write_packed(home.cache, same, "int8")
    build = tokenizer_build_of(folder, home)
    build.mkdir(parents=True, exist_ok=True)

    remove_model("first", home)
    assert packed.is_file() and of_third.is_file() and build.is_dir()
    remove_model("second", home)
    assert not packed.exists() and of_third.is_file() and build.is_dir()
    remove_model("third", home)
    assert not of_third.exists() and not build.exists()


def test_files_with_a_second_name_free_nothing(tiny_model: Path, home: Home) -> None:
    folder = own_model(home, tiny_model, "tiny")
    os.link(folder / "model.safetensors", home.root / "elsewhere")
    size = (folder / "model.safetensors").stat().st_size
    took = sum(files_under(folder).values())

    assert remove_model("tiny", home) == took - size


@pytest.mark.parametrize("is_own", [True, False])
def test_a_served_model_is_not_removed_unless_forced(
    tiny_model: Path, home: Home, is_own: bool
) -> None:
    if is_own:
        folder = own_model(home, tiny_model, "tiny")
    else:
        folder = tiny_model
        add_model(folder, home)
    with serving(folder) as pid:
        with pytest.raises(Conflict, match=f"tiny is served by process {pid};.*--force"):
            remove_model("tiny", home)
        assert plan_removal("tiny", home).manifest is not None

        remove_model("tiny", home, force=True)

    with pytest.raises(UnknownModel):
        plan_removal("tiny", home)


def test_a_model_is_free_once_its_process_is_gone(tiny_model: Path, home: Home) -> None:
    folder = own_model(home, tiny_model, "tiny")
    with serving(folder):
        pass

    assert remove_model("tiny", home) > 0


@pytest.mark.parametrize("served", ["org/tiny", "org--tiny"])
def test_the_command_names_the_pid_of_the_stack_that_serves_the_model(
    tiny_model: Path, home: Home, served: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_model(home, tiny_model, "org/tiny")
    home.run.mkdir(parents=True)
    write_run_file(home, new_stack_record(served, {}))

    assert main(["remove", "org/tiny", "--yes"]) == 1
    assert f"running stack (pid {os.getpid()})" in capsys.readouterr().err
    assert folder.is_dir()

    assert main(["remove", "org/tiny", "--yes", "--force"]) == 0
    assert not folder.exists()


def test_the_stack_of_another_model_does_not_matter(tiny_model: Path, home: Home) -> None:
    own_model(home, tiny_model, "tiny")
    home.run.mkdir(parents=True)
    write_run_file(home, new_stack_record("other", {}))

    assert main(["remove", "tiny", "--yes"]) == 0


def test_the_command_says_what_is_really_freed(
    tiny_model: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model(tiny_model, home)
    write_packed(home.cache, tiny_model, "int8", 3_000_000)

    main(["list", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["packed_bytes"] == 3_000_000
    main(["list"])
    assert "3.0 MB" in capsys.readouterr().out
    main(["remove", "tiny", "--yes"])
    assert "3.0 MB freed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "meant"), [("smal", "small"), ("Small", "small"), ("org/smalls", "org/small")]
)
def test_a_near_miss_is_told_what_may_be_meant(
    tiny_model: Path, home: Home, asked: str, meant: str
) -> None:
    add_model(tiny_model, home, name="small", aliases=("org/small",))

    with pytest.raises(UnknownModel, match=f"did you mean {meant}\\? known: org/small, small"):
        remove_model(asked, home)


def test_a_half_fetched_model_is_removed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    staged = home.models / ".staging" / "org--half"
    staged.mkdir(parents=True)
    (staged / ".model.safetensors.abc.part").write_bytes(bytes(2000))

    assert main(["remove", "org/half", "--yes"]) == 0
    assert "2.0 kB freed" in capsys.readouterr().out
    assert not staged.exists()


def test_a_process_keeps_no_mark_longer_than_its_engine(tiny_model: Path) -> None:
    from millrace.engine.served import ServedMark, who_serves

    mark: Any = ServedMark(tiny_model)
    assert who_serves(tiny_model) == f"process {os.getpid()}"
    del mark
    assert who_serves(tiny_model) == ""
    assert who_serves(tiny_model / "nowhere") == ""
