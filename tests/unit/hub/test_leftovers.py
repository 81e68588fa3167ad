"""What `models clean` finds: all that belongs to no model in use, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.cli.models import main
from millrace.config.home import Home
from millrace.engine.kernels.cpu.library import KINDS
from millrace.hub.add import add_model
from millrace.hub.default_model import WHEEL_NAME
from millrace.hub.leftovers import find_leftovers
from millrace.hub.model_cache import old_cache
from millrace.hub.staging import pull_lock
from millrace.hub.tokenizer_files import tokenizer_build_of

from .made_files import write_packed


@pytest.fixture(autouse=True)
def home_in_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(home.root))


def leftovers(home: Home, *kinds: str) -> list[Path]:
    return sorted(each.path for each in find_leftovers(home, lambda manifest, folder: kinds))


@pytest.mark.parametrize("kept", KINDS)
def test_weights_of_kinds_in_use_stay(tiny_model: Path, home: Home, kept: str) -> None:
    add_model(tiny_model, home)
    packed = {kind: write_packed(home.cache, tiny_model, kind) for kind in KINDS}

    found = leftovers(home, kept)

    others = [path for kind, path in packed.items() if kind != kept]
    assert found == sorted([*others, *(path.with_suffix(".lock") for path in others)])


def test_weights_of_no_model_and_of_a_changed_one_go(
    tiny_model: Path, make_model: Callable[..., Path], home: Home
) -> None:
    add_model(tiny_model, home)
    old = old_cache()
    assert old is not None
    changed = write_packed(home.cache, tiny_model, "bfloat16")
    os.utime(tiny_model / "config.json", ns=(1, 1))
    current = write_packed(home.cache, tiny_model, "bfloat16")
    foreign = write_packed(home.cache, make_model("other"), "bfloat16")
    elsewhere = write_packed(old, make_model("third"), "bfloat16")
    strange = home.cache / "weights" / "notes.txt"
    strange.write_text("not ours")

    found = leftovers(home, "bfloat16")

    assert {changed, foreign, elsewhere} < set(found)
    assert not {current, strange, current.with_suffix(".lock")} & set(found)


def test_what_is_being_packed_stays_and_what_broke_off_goes(tiny_model: Path, home: Home) -> None:
    packed = write_packed(home.cache, tiny_model, "int8")
    alive = packed.with_suffix(f".{os.getpid()}.part")
    dead = packed.with_suffix(f".{2**22 + 1}.part")
    for path in (alive, dead):
        path.write_bytes(b"")

    found = leftovers(home)

    assert dead in found and alive not in found


def test_tokenizers_of_no_model_go(
    tiny_model: Path, make_model: Callable[..., Path], home: Home
) -> None:
    add_model(tiny_model, home)
    other = make_model("other")
    (other / "tokenizer.json").write_text('{"version": "2"}')
    kept, gone = (tokenizer_build_of(folder, home) for folder in (tiny_model, other))
    for build in (kept, gone):
        build.mkdir(parents=True, exist_ok=True)

    assert leftovers(home) == [gone]


def test_downloads_go_unless_they_are_under_way(home: Home) -> None:
    staged = home.models / ".staging"
    for name in ("org--half", "org--running", "org--gone~17"):
        (staged / name).mkdir(parents=True)
    wheel = home.cache / WHEEL_NAME
    home.cache.mkdir()
    wheel.write_bytes(bytes(10))

    with pull_lock(home, "org--running"), pull_lock(home, "smollm2-135m-instruct"):
        assert leftovers(home) == [staged / "org--gone~17", staged / "org--half"]
    assert wheel in leftovers(home)


def test_the_command_lists_asks_and_frees(
    tiny_model: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model(tiny_model, home)
    # The settings ask for the dtype of the checkpoint.
    kept = write_packed(home.cache, tiny_model, "bfloat16")
    gone = write_packed(home.cache, tiny_model, "int4", 2_000_000)

    assert main(["clean"]) == 1
    shown = capsys.readouterr()
    assert f"2.0 MB  {gone}  (int4 weights of tiny, which the settings do not ask for)" in shown.out
    assert "--yes" in shown.err
    assert gone.is_file()

    assert main(["clean", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["bytes"] for item in listed["items"]] == [2_000_000, 0]
    assert gone.is_file()

    assert main(["clean", "--yes"]) == 0
    assert "2.0 MB freed" in capsys.readouterr().out
    assert kept.is_file() and not gone.exists()
    assert main(["clean"]) == 0
    assert "nothing to clean" in capsys.readouterr().out


def test_the_settings_say_which_weights_are_in_use(
    tiny_model: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(tiny_model, home)
    kept = write_packed(home.cache, tiny_model, "int8")
    gone = write_packed(home.cache, tiny_model, "bfloat16")
    monkeypatch.setenv("MILLRACE_WORKER_QUANTIZATION", "int8")

    assert main(["clean", "--yes"]) == 0

    assert kept.is_file() and not gone.exists()
