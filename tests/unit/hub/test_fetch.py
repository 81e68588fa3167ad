"""Pulling from a hub on loopback: whole, cut, gated, missing, damaged, twice at once."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from millrace.config.home import Home
from millrace.core.errors import (
    ConfigError,
    Conflict,
    Unavailable,
    UnknownModel,
    UnsupportedModel,
)
from millrace.hub.catalog import resolve_model
from millrace.hub.progress import Progress
from millrace.hub.pull import pull_model
from millrace.hub.remove import remove_model
from millrace.hub.staging import pull_lock

WEIGHTS = "model.safetensors"


def test_pull_brings_the_model_into_the_catalogue(fake_hub: Any, home: Home) -> None:
    entry = pull_model("org/tiny", home)

    assert entry.path == home.models / "org--tiny"
    assert (entry.path / WEIGHTS).read_bytes() == fake_hub.files[WEIGHTS]
    assert sorted(path.name for path in entry.path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        WEIGHTS,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (entry.license, entry.route, entry.max_model_len) == ("mit", "native", 128)
    assert resolve_model("org/tiny", home) == entry


def test_second_pull_asks_the_hub_nothing(fake_hub: Any, home: Home) -> None:
    first = pull_model("org/tiny", home)
    fake_hub.requests.clear()

    assert pull_model("org/tiny", home) == first
    assert fake_hub.requests == []


def test_cut_connection_is_continued_in_the_same_pull(fake_hub: Any, home: Home) -> None:
    fake_hub.cut_after[WEIGHTS] = [100, 200]

    entry = pull_model("org/tiny", home)

    assert fake_hub.ranges_of(WEIGHTS) == [None, "bytes=100-", "bytes=300-"]
    assert (entry.path / WEIGHTS).read_bytes() == fake_hub.files[WEIGHTS]


def test_next_pull_goes_on_where_the_last_one_stopped(fake_hub: Any, home: Home) -> None:
    fake_hub.cut_after[WEIGHTS] = [100, 0, 0]
    with pytest.raises(Unavailable, match=f"100 of {len(fake_hub.files[WEIGHTS])} bytes"):
        pull_model("org/tiny", home)
    assert not (home.models / "org--tiny").exists()
    with pytest.raises(UnknownModel):
        resolve_model("org/tiny", home)
    fake_hub.requests.clear()

    entry = pull_model("org/tiny", home)

    assert fake_hub.ranges_of(WEIGHTS) == ["bytes=100-"]
    assert fake_hub.ranges_of("config.json") == []
    assert (entry.path / WEIGHTS).read_bytes() == fake_hub.files[WEIGHTS]


def test_gated_model_says_how_to_give_a_token(fake_hub: Any, home: Home) -> None:
    fake_hub.gated = True

    with pytest.raises(ConfigError, match=r"gated \(HTTP 401\).*HF_TOKEN"):
        pull_model("org/tiny", home)


def test_gated_model_is_fetched_with_a_token(
    fake_hub: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.gated = True
    monkeypatch.setenv("HF_TOKEN", "good")

    assert pull_model("org/tiny", home).name == "org/tiny"


def test_unknown_repository_and_revision_are_named(fake_hub: Any, home: Home) -> None:
    with pytest.raises(UnknownModel, match="org/other is not on the hub"):
        pull_model("org/other", home)
    with pytest.raises(UnknownModel, match="org/tiny has no revision 'v9'"):
        pull_model("org/tiny", home, hub_revision="v9")


def test_wrong_hash_leaves_nothing_behind(fake_hub: Any, home: Home) -> None:
    fake_hub.wrong_hash = True

    with pytest.raises(ConfigError, match=f"{WEIGHTS}: the hash"):
        pull_model("org/tiny", home)

    assert not (home.models / "org--tiny").exists()
    assert not list((home.models / ".staging" / "org--tiny").glob(f"*{WEIGHTS}*"))


def test_full_disk_is_seen_before_the_download(
    fake_hub: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))

    with pytest.raises(ConfigError, match=r"disk full: the model org/tiny needs .* 1.0 kB free"):
        pull_model("org/tiny", home)

    assert fake_hub.ranges_of(WEIGHTS) == []


def test_repository_without_safetensors_is_refused(fake_hub: Any, home: Home) -> None:
    del fake_hub.files[WEIGHTS]

    with pytest.raises(UnsupportedModel, match="no safetensors"):
        pull_model("org/tiny", home)


def test_unreachable_hub_is_named(
    fake_hub: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")

    with pytest.raises(Unavailable, match=r"hub at http://127.0.0.1:1 cannot be reached"):
        pull_model("org/tiny", home)


def test_failing_hub_is_unavailable(fake_hub: Any, home: Home) -> None:
    fake_hub.down = True

    with pytest.raises(Unavailable, match="HTTP 503"):
        pull_model("org/tiny", home)


def test_offline_without_a_cache_says_so(
    fake_hub: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set"):
        pull_model("org/tiny", home)


def test_offline_takes_the_hub_clients_own_cache(
    fake_hub: Any, home: Home, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hf" / "hub" / "models--org--tiny"
    shutil.copytree(tiny_model, cached / "snapshots" / "main1")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("main1")
    online = pull_model("org/tiny", home, name="online")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fake_hub.requests.clear()

    entry = pull_model("org/tiny", Home(tmp_path / "home2"))

    assert fake_hub.requests == []
    assert entry.revision == online.revision


def test_file_in_the_hub_clients_cache_is_not_downloaded_again(
    fake_hub: Any, home: Home, tmp_path: Path, tiny_model: Path
) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--org--tiny" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(tiny_model / WEIGHTS, snapshot)

    entry = pull_model("org/tiny", home)

    assert fake_hub.ranges_of(WEIGHTS) == []
    assert (entry.path / WEIGHTS).read_bytes() == fake_hub.files[WEIGHTS]


def test_half_finished_pull_can_be_removed(fake_hub: Any, home: Home) -> None:
    fake_hub.cut_after[WEIGHTS] = [100, 0, 0]
    with pytest.raises(Unavailable):
        pull_model("org/tiny", home)

    assert remove_model("org/tiny", home) > 100
    with pytest.raises(UnknownModel):
        remove_model("org/tiny", home)


def test_disk_that_fills_up_during_the_download_is_told(
    fake_hub: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Progress, amount: int) -> None:
        if amount:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Progress, "advance", full)

    with pytest.raises(ConfigError, match="disk full while writing"):
        pull_model("org/tiny", home)


def test_other_name_keeps_the_hub_id_as_alias(fake_hub: Any, home: Home) -> None:
    pull_model("org/tiny", home, name="small")

    assert resolve_model("org/tiny", home).name == "small"


def test_two_pulls_at_once_download_once(fake_hub: Any, home: Home) -> None:
    started, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert go_on.wait(10)

    fake_hub.on_download = hold
    entries: list[Any] = []
    threads = [
        threading.Thread(target=lambda: entries.append(pull_model("org/tiny", home)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    with pytest.raises(Conflict, match=f"pid {os.getpid()}"):
        pull_model("org/tiny", home, wait_s=0.0)

    go_on.set()
    for thread in threads:
        thread.join()

    assert len(entries) == 2
    assert entries[0] == entries[1]
    assert len(fake_hub.ranges_of(WEIGHTS)) == 1


def test_lock_of_another_model_does_not_matter(fake_hub: Any, home: Home) -> None:
    with pull_lock(home, "org--other"):
        assert pull_model("org/tiny", home, wait_s=0.0).name == "org/tiny"


def test_plain_names_that_nobody_knows_are_refused(home: Home) -> None:
    with pytest.raises(UnknownModel, match="neither the default model"):
        pull_model("gpt-9", home)
    with pytest.raises(ConfigError, match="models add"):
        pull_model("./folder", home)


def test_progress_is_plain_lines_without_a_terminal(fake_hub: Any, home: Home) -> None:
    stream = io.StringIO()

    pull_model("org/tiny", home, stream=stream)

    assert "fetching org/tiny: 5 files" in stream.getvalue()
    assert f"{WEIGHTS}: done" in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_command_respects_hf_endpoint(fake_hub: Any, home: Home, tmp_path: Path) -> None:
    environ = os.environ | {
        "MILLRACE_HOME": str(home.root),
        "HF_ENDPOINT": fake_hub.url,
        "HF_HOME": str(tmp_path / "hf2"),
        "HF_HUB_OFFLINE": "0",
    }
    code = "import sys; from millrace.cli.models import main; sys.exit(main(sys.argv[1:]))"

    result = subprocess.run(
        [sys.executable, "-c", code, "pull", "org/tiny"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    manifest = json.loads((home.models / "org--tiny" / "manifest.json").read_text())
    assert manifest["source"].startswith("hub:org/tiny@")
