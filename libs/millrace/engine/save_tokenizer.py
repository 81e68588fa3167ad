"""Saves a tokenizer as transformers constructs it: python -m millrace.engine.save_tokenizer FROM TO

Several tokenizer classes of transformers replace parts of the tokenizer.json that they load, or
build one from older files. A process of its own does that once per model, so that the tokenizer
service gives the same ids without transformers.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from millrace.core.errors import UnsupportedModel

_MAX_REASON_CHARS = 500


def save_tokenizer(source: Path, target: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json of the folder `source` into `target`.

    Never runs code of the checkpoint and never asks the network. Raises UnsupportedModel for a
    tokenizer that is no tokenizer.json, and whatever transformers raises.
    """
    _check_packages(source)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        source, local_files_only=True, trust_remote_code=False, mistral_format=False
    )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModel(
            f"transformers runs {type(tokenizer).__name__} in Python; no tokenizer.json says the "
            "same"
        )
    tokenizer.save_pretrained(target)


def _check_packages(source: Path) -> None:
    """transformers takes a SentencePiece file that it cannot read for one of tiktoken."""
    models = [] if (source / "tokenizer.json").exists() else sorted(source.glob("*.model"))
    if models and not (find_spec("sentencepiece") or find_spec("tiktoken")):
        raise UnsupportedModel(
            f"there is no tokenizer.json, and to make one of {models[0].name} takes the package "
            "sentencepiece (or tiktoken), which is not installed"
        )


def main() -> int:
    """Tells the reason of a failure in the last line of stderr."""
    parser = argparse.ArgumentParser(prog="python -m millrace.engine.save_tokenizer")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    # Tokenizers do without it, and its import takes two thirds of the time and the memory.
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        save_tokenizer(args.source, args.target)
    except Exception as error:
        # transformers raises anything, and its messages have several lines.
        reason = " ".join(str(error).split()) or type(error).__name__
        print(reason[:_MAX_REASON_CHARS], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
