"""What `models add` takes, a stack serves; what it refuses, it does not keep, and says why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.models import main
from millrace.config.home import Home
from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.engine.tensor_headers import read_tensor_headers
from millrace.hub import servable
from millrace.hub.add import add_model
from millrace.hub.catalog import resolve_model
from millrace.hub.safetensors_file import write_safetensors
from millrace.hub.servable import check_entry

from .made_files import files_under

Change = Callable[[Path], object]
WEIGHTS = "model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"
DTYPE_BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4}


@pytest.fixture(autouse=True)
def home_in_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(home.root))


def config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()

    return change


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def stored(
    rename: Callable[[str], str] = str,
    dtype: str = "BF16",
    shape: Callable[[str, tuple[int, ...]], tuple[int, ...]] = lambda name, shape: shape,
    without: str = "",
) -> Change:
    """Writes the weights again with other names, dtypes and shapes, as zeros."""

    def change(folder: Path) -> None:
        headers = read_tensor_headers(folder / WEIGHTS)
        tensors = []
        for header in headers:
            if without and without in header.name:
                continue
            is_matrix = header.name.endswith("_proj.weight")
            name = rename(header.name) if is_matrix else header.name
            kind = dtype if is_matrix else header.dtype
            tensors.append((name, kind, shape(header.name, header.shape)))
        contents = []
        for _, kind, dims in tensors:
            count = DTYPE_BYTES[kind]
            for dim in dims:
                count *= dim
            contents.append(bytes(count))
        write_safetensors(folder / WEIGHTS, tensors, contents)

    return change


def to_word(number: int) -> Change:
    """The tokenizer gives some text an id that is `number`."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        content["model"]["vocab"]["beyond"] = number
        path.write_text(json.dumps(content))

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "gptq": (stored(lambda name: name.replace(".weight", ".qweight"), "I32"), "gptq or awq"),
    "gptq by its settings": (config(quantization_config={"quant_method": "gptq"}), "'gptq'"),
    "fp8": (stored(dtype="F8_E4M3"), "fp8"),
    "int8": (stored(dtype="I8"), "int8"),
    "bitsandbytes": (stored(dtype="U8"), "bitsandbytes"),
    "adapter beside a model": (write("adapter_model.safetensors", ""), "LoRA.*merge it"),
    "adapter alone": (
        lambda folder: (remove("config.json")(folder), write("adapter_config.json", "{}")(folder)),
        "LoRA.*merge it",
    ),
    "classifier": (config(architectures=["LlamaForSequenceClassification"]), "no head that writes"),
    "encoder": (config(model_type="bert", architectures=["BertForMaskedLM"]), "is an encoder"),
    "encoder and decoder": (
        config(model_type="t5", architectures=None, is_encoder_decoder=True),
        "encoder-decoder",
    ),
    "recurrent": (config(model_type="mamba", architectures=["MambaForCausalLM"]), "recurrent"),
    "cut weights": (cut, "bytes where its header says"),
    "no weights": (remove(WEIGHTS), "no .*safetensors"),
    "pointer for weights": (write(WEIGHTS, LFS), "Git LFS pointer.*git lfs pull"),
    "pointer for config.json": (write("config.json", LFS), "config.json is a Git LFS pointer"),
    "pointer for tokenizer.json": (write("tokenizer.json", LFS), "tokenizer.json is a Git LFS"),
    "broken index": (write(f"{WEIGHTS}.index.json", "{"), "cannot read .*index.json"),
    "index without files": (write(f"{WEIGHTS}.index.json", "{}"), "no weight_map"),
    "missing tensor": (stored(without="layers.1.mlp.down_proj"), "down_proj"),
    "wrong shape": (stored(shape=lambda name, shape: (8, 16) if "q_proj" in name else shape), "8"),
    "left-over tensor": (config(num_hidden_layers=1), "layers.1"),
    "untied without a head": (config(tie_word_embeddings=False), "lm_head"),
    "ids beyond the model": (to_word(32), "'beyond' the id 32"),
    "two words with an id": (to_word(31), "share the id 31"),
    "tokenizer of an unknown kind": (
        write("tokenizer.json", '{"version": "1.0", "model": {"type": "Odd", "vocab": {}}}'),
        "tokenizer",
    ),
    "text for a tokenizer": (write("tokenizer.json", "hello"), "cannot read .*tokenizer.json"),
    "end that is no token": (write("generation_config.json", '{"eos_token_id": 99}'), "99 is no"),
    "GGUF inside": (
        lambda folder: (remove("config.json")(folder), write("m.GGUF", "")(folder)),
        r"millrace models add .*/m\.GGUF",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_served_is_refused_with_the_reason_and_not_kept(
    tiny_model: Path, home: Home, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, reason = REFUSED[kind]
    change(tiny_model)

    assert main(["add", str(tiny_model)]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(UnsupportedModel, match=f"(?s){reason}") as caught:
        add_model(tiny_model, home)
    assert caught.value.message == line.removeprefix("error: ")
    assert files_under(home.root) == {}
    assert list(tiny_model.parent.glob("home/models/.staging/*")) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (stored(without="layers.1.mlp.dense_h_to_4h.bias"), "lacks the tensor"),
        (stored(shape=lambda name, shape: (31, 16) if "embed_in" in name else shape), "the shape"),
    ],
)
def test_the_tensors_of_a_generic_model_are_checked_too(
    make_generic_model: Callable[..., Path], home: Home, change: Change, reason: str
) -> None:
    folder = make_generic_model("g")
    change(folder)

    with pytest.raises(UnsupportedModel, match=reason):
        add_model(folder, home)
    assert files_under(home.root) == {}


def test_nothing_that_transformers_says_reaches_the_terminal(
    make_generic_model: Callable[..., Path], home: Home
) -> None:
    folder = make_generic_model("g", bos_token_id=1_000, pad_token_id=-5)
    command = [sys.executable, "-m", "millrace.cli.__main__", "models", "add", str(folder)]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert {line.partition(":")[0] for line in result.stderr.splitlines()} == {"hashing"}
    assert result.stdout.startswith("g: ")
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize("step", ["check_servable", "hash_model", "publish"])
def test_an_interrupted_add_leaves_nothing_and_says_so(
    tiny_model: Path,
    home: Home,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"millrace.hub.add.{step}", interrupt)

    assert main(["add", str(tiny_model)]) == 130
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith("hashing")] == [
        "millrace: interrupted; nothing was added"
    ]
    assert files_under(home.root) == {}


def test_an_entry_is_checked_once_and_again_when_something_changed(
    tiny_model: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask = servable._ask_engine

    def ask_and_note(folder: Path) -> dict[str, Any]:
        asked.append(folder)
        return ask(folder)

    monkeypatch.setattr(servable, "_ask_engine", ask_and_note)

    def check() -> int:
        asked.clear()
        check_entry(resolve_model("tiny", home), home)
        return len(asked)

    add_model(tiny_model, home)
    assert check() == 0
    entry_folder = home.models / "tiny"
    saved = json.loads((entry_folder / "manifest.json").read_text())
    # As an older version wrote it.
    del saved["checked_by"]
    (entry_folder / "manifest.json").write_text(json.dumps(saved))
    assert (check(), check()) == (1, 0)
    write("adapter_config.json", "{}")(tiny_model)
    with pytest.raises(UnsupportedModel, match="tiny cannot be served: .*LoRA"):
        check()


def test_a_source_tree_that_was_never_installed_can_check_too(
    tiny_model: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)

    assert add_model(tiny_model, home).route == "native"


def test_a_folder_that_cannot_be_checked_is_no_refusal(
    tiny_model: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")

    with pytest.raises(ConfigError, match="could not be checked"):
        add_model(tiny_model, home)


@pytest.mark.parametrize("name", ["model.GGUF", "sha256-0123", "noname"])
def test_a_gguf_file_is_known_by_its_content(
    make_gguf: Callable[..., Any], home: Home, tmp_path: Path, name: str
) -> None:
    path = make_gguf().path.rename(tmp_path / name)

    assert add_model(path, home).route == "native"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("notes.txt", "hello", "neither a model folder nor a GGUF"),
        ("model.gguf", LFS, "Git LFS pointer"),
        ("empty", "", "neither a model folder nor a GGUF"),
    ],
)
def test_other_files_are_refused(
    home: Home, tmp_path: Path, name: str, text: str, reason: str
) -> None:
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises((ConfigError, UnsupportedModel), match=reason):
        add_model(path, home)
