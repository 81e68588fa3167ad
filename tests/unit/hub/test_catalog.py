"""The catalogue: names, aliases, folders, revisions, adding and removing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from millrace.config.home import Home
from millrace.core.errors import ConfigError, Conflict, UnknownModel, UnsupportedModel
from millrace.hub.add import add_model
from millrace.hub.catalog import resolve_model
from millrace.hub.manifest import Manifest, check_name
from millrace.hub.remove import remove_model

QUICK_S = 0.05


def test_added_folder_is_found_by_name_and_alias(tiny_model: Path, home: Home) -> None:
    added = add_model(tiny_model, home, name="small", aliases=("s", "org/small"))

    assert resolve_model("small", home) == added
    assert resolve_model("s", home) == added
    assert resolve_model("org/small", home) == added
    assert added.path == tiny_model
    assert added.architecture == "LlamaForCausalLM"


def test_name_defaults_to_the_folder(tiny_model: Path, home: Home) -> None:
    assert add_model(tiny_model, home).name == "tiny"


def test_folder_needs_no_registration(
    tiny_model: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)

    absolute, relative = resolve_model(str(tiny_model), home), resolve_model("./tiny", home)

    assert absolute == relative
    assert absolute.name == "tiny"


def test_unknown_name_tells_command_and_nearest(tiny_model: Path, home: Home) -> None:
    add_model(tiny_model, home, name="mistral-tiny")

    with pytest.raises(UnknownModel, match="nearest known: mistral-tiny"):
        resolve_model("mistral-tin", home)
    with pytest.raises(UnknownModel, match="millrace models pull smollm2$"):
        resolve_model("smollm2", home)
    with pytest.raises(UnknownModel, match="millrace models pull org/name$"):
        resolve_model("org/name", home)
    with pytest.raises(UnknownModel, match="does not exist"):
        resolve_model("./nowhere", home)


def test_taken_name_is_a_conflict(
    tiny_model: Path, home: Home, make_model: Callable[..., Path]
) -> None:
    add_model(tiny_model, home, aliases=("t",))
    other = make_model("other")

    for name, aliases in (("tiny", ()), ("t", ()), ("new", ("tiny",))):
        with pytest.raises(Conflict, match="is taken by the model tiny"):
            add_model(other, home, name=name, aliases=aliases)


def test_revision_depends_on_content_alone(
    tiny_model: Path, home: Home, make_model: Callable[..., Path]
) -> None:
    first = add_model(tiny_model, home)
    same = add_model(make_model("same"), home)
    other = add_model(make_model("other", seed=1), home)

    assert first.revision == same.revision
    assert first.revision != other.revision


def test_changed_folder_gets_another_revision(tiny_model: Path, home: Home) -> None:
    before = add_model(tiny_model, home)
    weights = tiny_model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    time.sleep(0.01)
    weights.write_bytes(content)

    after = resolve_model("tiny", home)

    assert after.revision != before.revision
    assert after.size_bytes == before.size_bytes


def test_vanished_folder_is_told_with_the_way_out(tiny_model: Path, home: Home) -> None:
    add_model(tiny_model, home)
    tiny_model.rename(tiny_model.with_name("moved"))

    with pytest.raises(UnsupportedModel, match="is gone.*millrace models remove tiny"):
        resolve_model("tiny", home)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no \\*.safetensors"),
        ("tokenizer.json", "no tokenizer.json"),
    ],
)
def test_incomplete_folder_is_refused(tiny_model: Path, home: Home, file: str, reason: str) -> None:
    (tiny_model / file).unlink()

    with pytest.raises(UnsupportedModel, match=reason):
        add_model(tiny_model, home)

    assert not (home.models / "tiny").exists()


def test_missing_shard_is_refused(tiny_model: Path, home: Home) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (tiny_model / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(UnsupportedModel, match="1 of 2 weight files.*model-2.safetensors"):
        add_model(tiny_model, home)


def test_refused_architecture_of_an_older_home_is_listed_with_its_reason(
    home: Home, make_model: Callable[..., Path]
) -> None:
    folder = make_model("m")
    add_model(folder, home)
    saved = Manifest.load(home.models / "m")
    replace(saved, route="refused", refusal="mamba: why", checked_by="").save(home.models / "m")

    entry = resolve_model("m", home)

    assert (entry.route, entry.refusal) == ("refused", "mamba: why")


def test_remove_keeps_a_folder_that_was_only_added(tiny_model: Path, home: Home) -> None:
    add_model(tiny_model, home, aliases=("t",))

    manifest_bytes = (home.models / "tiny" / "manifest.json").stat().st_size

    assert remove_model("t", home) == manifest_bytes
    assert (tiny_model / "model.safetensors").is_file()
    with pytest.raises(UnknownModel):
        resolve_model("tiny", home)


def test_remove_deletes_what_millrace_stored(make_gguf: Callable[..., Any], home: Home) -> None:
    source = make_gguf()
    entry = add_model(source.path, home, name="imported")

    manifest_bytes = (entry.path / "manifest.json").stat().st_size

    assert remove_model("imported", home) == entry.size_bytes + manifest_bytes
    assert not entry.path.exists()
    assert list((home.models / ".staging").iterdir()) == []
    assert source.path.is_file()


def test_remove_of_an_unknown_model_names_the_known(tiny_model: Path, home: Home) -> None:
    add_model(tiny_model, home)

    with pytest.raises(UnknownModel, match="known: .*tiny"):
        remove_model("other", home)


def test_imported_gguf_is_an_ordinary_entry(make_gguf: Callable[..., Any], home: Home) -> None:
    entry = add_model(make_gguf().path, home, name="imported")

    assert entry.path == home.models / "imported"
    assert (entry.license, entry.route, entry.max_model_len) == ("apache-2.0", "native", 512)


def test_refused_gguf_leaves_nothing(make_gguf: Callable[..., Any], home: Home) -> None:
    with pytest.raises(UnsupportedModel):
        add_model(make_gguf(architecture="bloom").path, home, name="imported")

    assert not (home.models / "imported").exists()
    assert list((home.models / ".staging").iterdir()) == []


def test_resolving_is_quick_and_imports_no_library(tiny_model: Path, home: Home) -> None:
    add_model(tiny_model, home)
    code = (
        "import sys, time, json\n"
        "from pathlib import Path\n"
        "from millrace.config.home import Home\n"
        "from millrace.hub import resolve_model\n"
        "home = Home(Path(sys.argv[1]))\n"
        "started = time.process_time()\n"
        "resolve_model('tiny', home)\n"
        "print(json.dumps([time.process_time() - started, sorted(sys.modules)]))\n"
    )

    output = subprocess.run(
        [sys.executable, "-c", code, str(home.root)], capture_output=True, text=True, check=True
    ).stdout

    seconds, modules = json.loads(output)
    assert seconds < QUICK_S
    assert not {"torch", "transformers", "huggingface_hub", "numpy"} & set(modules)


def test_generic_route_is_remembered(home: Home, make_generic_model: Callable[..., Path]) -> None:
    folder = make_generic_model("g")
    add_model(folder, home)
    saved = Manifest.load(home.models / "g")
    replace(saved, route="refused", refusal="written down").save(home.models / "g")

    entry = resolve_model("g", home)

    assert saved.route == "generic"
    assert entry.refusal == "written down"


def test_route_is_decided_again_for_another_transformers(
    home: Home, make_generic_model: Callable[..., Path]
) -> None:
    folder = make_generic_model("g")
    add_model(folder, home)
    saved = Manifest.load(home.models / "g")
    replace(saved, route="refused", route_by="transformers 0").save(home.models / "g")

    assert resolve_model("g", home).route == "generic"


def test_damaged_manifest_is_named(tiny_model: Path, home: Home) -> None:
    add_model(tiny_model, home)
    (home.models / "tiny" / "manifest.json").write_text("{")

    with pytest.raises(ConfigError, match="damaged manifest"):
        resolve_model("tiny", home)


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a--b", ".hidden", "a b", "x" * 97, "a/"])
def test_names_that_would_not_be_folders_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="model name"):
        check_name(name)
