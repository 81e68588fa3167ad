"""Perplexity of a model on the pinned text of tests/data/perplexity, and its change to another run.

    python scripts/perplexity.py --set dtype=bfloat16 --save bench-results/bf16.npz
    python scripts/perplexity.py --set dtype=float32 --reference bench-results/bf16.npz

The first run saves losses and most likely tokens, the second is compared with them token by token.
Each window begins with BOS if the model's tokenizer puts one before a text.
`--rows 32 --chunk-tokens 1` goes through the text the way decoding does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from millrace.core.errors import MillraceError
from millrace.engine.config import EngineConfig
from millrace.engine.model_runner import ModelRunner
from millrace.engine.perplexity import PerplexityRun, Scores, compare
from millrace.hub.catalog import resolve_model

TEXT = Path(__file__).parents[1] / "tests" / "data" / "perplexity" / "text.txt.gz"
PROGRESS_EVERY_S = 5.0
# What the command line, the windows and the rows decide.
CHOSEN_HERE = (
    *("model_path", "name", "aliases", "revision"),
    *("num_blocks", "max_num_seqs", "max_model_len"),
)
SETTABLE = {field.name: field.default for field in fields(EngineConfig)}
SETTABLE = {name: value for name, value in SETTABLE.items() if name not in CHOSEN_HERE}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, prints, and returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        report = measure(arguments)
    except MillraceError as error:
        print(f"perplexity: {error.message}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2) if arguments.json else _as_text(report))
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report of one run; see `main` for the arguments."""
    folder = resolve_model(arguments.model).path
    bos_token_id, token_ids = _read_tokens(folder, arguments.text)
    token_ids = token_ids[: arguments.max_tokens or None]
    reference = load_scores(arguments.reference) if arguments.reference else None
    runner = ModelRunner.load(_engine_config(arguments, folder))
    run = PerplexityRun(
        runner,
        window_tokens=arguments.window_tokens,
        rows=arguments.rows,
        chunk_tokens=arguments.chunk_tokens,
        bos_token_id=bos_token_id,
    )
    progress = Progress(sum(map(len, run.cut(token_ids))))
    scores = run.score(token_ids, progress.show)
    if arguments.save:
        save_scores(arguments.save, scores)
    report = {
        "model": runner.info.name,
        "settings": dict(arguments.set),
        "dtype": runner.info.dtype,
        "route": runner.info.route,
        "weight_bytes": runner.info.weight_bytes,
        "num_tokens": len(scores.token_ids),
        "window_tokens": arguments.window_tokens,
        "rows": arguments.rows,
        "chunk_tokens": arguments.chunk_tokens,
        "bos_token_id": bos_token_id,
        "perplexity": scores.perplexity,
        "tokens_per_s": len(scores.token_ids) / progress.elapsed_s,
    }
    return report if reference is None else {**report, **asdict(compare(scores, reference))}


class Progress:
    """Lines on stderr, some seconds apart."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._started_s = time.monotonic()
        self._next_s = self._started_s + PROGRESS_EVERY_S

    @property
    def elapsed_s(self) -> float:
        """Since the start, seconds."""
        return time.monotonic() - self._started_s

    def show(self, done: int) -> None:
        """Prints where the last line is long enough ago."""
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + PROGRESS_EVERY_S
        rate = done / self.elapsed_s
        print(
            f"{done} of {self._total} tokens, {rate:.0f} tokens/s, "
            f"about {(self._total - done) / rate:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def save_scores(path: Path, scores: Scores) -> None:
    """Writes a run for later comparisons; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, **asdict(scores))


def load_scores(path: Path) -> Scores:
    """Reads what `save_scores` wrote."""
    with np.load(path, allow_pickle=False) as data:
        return Scores(
            token_ids=data["token_ids"],
            window_tokens=int(data["window_tokens"]),
            losses=data["losses"],
            best_ids=data["best_ids"],
        )


def _read_tokens(folder: Path, text: Path) -> tuple[int | None, list[int]]:
    """The BOS that the tokenizer puts before a text, if it does, and the text's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    raw = gzip.decompress(text.read_bytes()) if text.suffix == ".gz" else text.read_bytes()
    tokens = tokenizer(raw.decode(), add_special_tokens=False, verbose=False)["input_ids"]
    has_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token_id if has_bos else None, list(tokens)


def _engine_config(arguments: argparse.Namespace, folder: Path) -> EngineConfig:
    settings = {**SETTABLE, **dict(arguments.set)}
    return EngineConfig(
        model_path=folder,
        name=folder.name,
        max_num_seqs=arguments.rows,
        max_model_len=arguments.window_tokens,
        num_blocks=arguments.rows * -(-arguments.window_tokens // settings["block_size"]),
        **settings,
    )


def _setting(text: str) -> tuple[str, Any]:
    """`name=value` of an engine setting, the value in the setting's type."""
    name, equals, value = text.partition("=")
    if not equals or name not in SETTABLE:
        names = ", ".join(SETTABLE)
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE with NAME of {names}")
    if isinstance(SETTABLE[name], str):
        return name, value
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: {name} is a whole number")
    return name, int(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or folder")
    parser.add_argument("--text", type=Path, default=TEXT, help="UTF-8, plain or .gz")
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], help="an engine setting: NAME=VALUE"
    )
    parser.add_argument("--window-tokens", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=1, help="windows that go together")
    parser.add_argument("--chunk-tokens", type=int, default=256, help="of each window in a step")
    parser.add_argument("--max-tokens", type=int, default=0, help="only the first of the text")
    parser.add_argument("--save", type=Path, help="keep this run as a reference (.npz)")
    parser.add_argument("--reference", type=Path, help="compare with a run that was saved")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _as_text(report: dict[str, Any]) -> str:
    shown = (
        f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in report.items()
    )
    return "\n".join(shown)


if __name__ == "__main__":
    sys.exit(main())
