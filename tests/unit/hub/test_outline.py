"""What the hub's config.json and headers alone tell, before any weights are fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from millrace.cli.models import main
from millrace.cli.stack.model_choice import find_or_pull, require_fit
from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.engine.tensor_headers import tensor_headers
from millrace.hub import outline
from millrace.hub.fit import check_fit
from millrace.hub.outline import remote_entry
from millrace.hub.pull import pull_model

from .conftest import FakeHub, tiny_shapes
from .made_files import files_under

WEIGHTS = "model.safetensors"
BIG = 2_000_000_000


@pytest.fixture(autouse=True)
def home_in_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(home.root))


def change_config(hub: FakeHub, **values: Any) -> None:
    config = json.loads(hub.files["config.json"]) | values
    hub.files["config.json"] = json.dumps(config).encode()


def classifier(hub: FakeHub) -> None:
    change_config(hub, architectures=["LlamaForSequenceClassification"])


def quantized(hub: FakeHub) -> None:
    change_config(hub, quantization_config={"quant_method": "awq"})


def recurrent(hub: FakeHub) -> None:
    change_config(hub, model_type="mamba")


def misshapen(hub: FakeHub) -> None:
    change_config(hub, num_key_value_heads=1)


def lacking(hub: FakeHub) -> None:
    change_config(hub, num_hidden_layers=3)


def cut(hub: FakeHub) -> None:
    hub.files[WEIGHTS] = hub.files[WEIGHTS][:-2]


def pointer(hub: FakeHub) -> None:
    hub.files[WEIGHTS] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"


def adapter(hub: FakeHub) -> None:
    hub.files["adapter_model.safetensors"] = hub.files.pop(WEIGHTS)


def only_gguf(hub: FakeHub) -> None:
    hub.files["tiny-q4.gguf"] = hub.files.pop(WEIGHTS)


REFUSED: dict[Callable[[FakeHub], None], str] = {
    classifier: "no head that writes text",
    quantized: "'awq'",
    recurrent: "recurrent",
    misshapen: "the shape",
    lacking: "lacks 9 tensors",
    cut: "bytes where its header says",
    pointer: "no complete safetensors file",
    adapter: "LoRA",
    only_gguf: "models add FILE",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_be_served_is_refused_before_its_weights_are_fetched(
    fake_hub: FakeHub,
    home: Home,
    change: Callable[[FakeHub], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(fake_hub)

    with pytest.raises(UnsupportedModel, match=f"org/tiny.*{REFUSED[change]}"):
        pull_model("org/tiny", home)
    assert fake_hub.ranges_of(WEIGHTS) == []
    assert files_under(home.root) == {}
    assert not list((home.models / ".staging").iterdir())

    assert main(["fit", "org/tiny"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "reading what the hub has" in shown.err.splitlines()[0]
    assert len(shown.err.splitlines()) == 2
    assert main(["pull", "org/tiny"]) == 1


@pytest.mark.parametrize("ignores_ranges", [False, True])
@pytest.mark.parametrize("first_bytes", [4, 100, 1 << 20])
def test_an_outline_has_every_header_and_no_weights(
    fake_hub: FakeHub,
    tiny_model: Path,
    ignores_ranges: bool,
    first_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outline, "_FIRST_BYTES", max(8, first_bytes))
    fake_hub.ignores_ranges = ignores_ranges

    with remote_entry("org/tiny") as entry:
        assert tensor_headers(entry.path) == tensor_headers(tiny_model)
        assert (entry.path / WEIGHTS).stat().st_size == len(fake_hub.files[WEIGHTS])
        assert not (entry.path / "tokenizer.json").exists()
        assert (entry.name, entry.license, entry.route) == ("org/tiny", "mit", "native")

    assert not entry.path.exists()
    assert fake_hub.looks_at(WEIGHTS)
    assert fake_hub.ranges_of(WEIGHTS) == []


def big_model(hub: FakeHub) -> None:
    """Weights of two gigabytes, of which the hub has the header only."""
    content = json.loads(hub.files["config.json"]) | {"vocab_size": BIG // 32}
    change_config(hub, vocab_size=BIG // 32)
    header, end = {}, 0
    for name, shape in tiny_shapes(content).items():
        size = 2
        for dim in shape:
            size *= dim
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    hub.files[WEIGHTS] = len(raw).to_bytes(8, "little") + raw
    hub.sizes[WEIGHTS] = 8 + len(raw) + end


def test_fit_reads_a_model_of_the_hub_without_fetching_it(
    fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    big_model(fake_hub)

    assert main(["fit", "org/tiny", "--memory", "64GB", "--json"]) == 0
    (told,) = [
        row for row in json.loads(capsys.readouterr().out)["dtypes"] if row["dtype"] == "bfloat16"
    ]
    assert told["weight_bytes"] > BIG
    assert main(["fit", "org/tiny", "--memory", "1GB"]) == 1
    assert "no setting fits" in capsys.readouterr().out
    assert fake_hub.ranges_of(WEIGHTS) == []


def test_up_asks_whether_a_model_fits_before_it_is_fetched(
    fake_hub: FakeHub, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    big_model(fake_hub)
    monkeypatch.setattr("millrace.hub.fit._available_memory_bytes", lambda: 10**9)
    approve = partial(require_fit, config=UpConfig(), environ={"MILLRACE_HOME": str(home.root)})

    with pytest.raises(ConfigError, match="(?s)org/tiny in 1.0 GB.*no setting fits"):
        find_or_pull("org/tiny", home, approve)

    assert fake_hub.ranges_of(WEIGHTS) == []
    assert files_under(home.root) == {}
    assert not list((home.models / ".staging").iterdir())


def test_fit_says_the_same_before_and_after_the_model_is_fetched(
    fake_hub: FakeHub, home: Home
) -> None:
    with remote_entry("org/tiny") as entry:
        before = check_fit(entry, 10**9).to_json()

    assert check_fit(pull_model("org/tiny", home), 10**9).to_json() == before


def test_a_gated_model_is_read_with_a_token(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_hub.gated = True

    assert main(["fit", "org/tiny"]) == 1
    assert "gated (HTTP 401)" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "good")
    assert main(["fit", "org/tiny", "--memory", "4GB"]) == 0


def unreachable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")


def offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def failing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.down = True


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(unreachable, "cannot be reached"), (offline, "HF_HUB_OFFLINE is set"), (failing, "HTTP 503")],
)
def test_a_hub_that_does_not_answer_is_one_line(
    fake_hub: FakeHub,
    fault: Callable[[FakeHub, pytest.MonkeyPatch], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault(fake_hub, monkeypatch)

    assert main(["fit", "org/tiny"]) == 1

    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[1].startswith("error: ") and reason in said[1]
