"""Makes ready what a worker would otherwise make at its start: kernels and packed weights.

python -m millrace.engine.prepare [--model FOLDER ...]; without a model only the kernels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from millrace.core.errors import MillraceError, UnsupportedModel

from .config import KV_DTYPES, QUANTIZATIONS, EngineConfig, resolve_config, weight_kind
from .config_json import read_config
from .kernels.cpu.build import build_library, can_build
from .kernels.cpu.instruction_paths import choose_path
from .kernels.cpu.load import buildable_path, default_cache_dir
from .kernels.cpu.packed_place import packed_path
from .progress_text import only_last_steps
from .routes import is_native

# Exit status if the model is the reason, whatever the machine.
UNSERVABLE = 3


def main() -> int:
    """Builds and packs; a machine without a compiler is told so and served by plain torch."""
    args = _parser().parse_args()
    cache_dir = args.cache_dir or default_cache_dir()
    try:
        path = choose_path(args.instruction_path)
        if path is None or not can_build(path):
            missing = "no kernels are written for this CPU" if path is None else "no C++ compiler"
            print(f"{missing}: the model will run on plain torch, several times as slow")
            return 0
        build_library(path, cache_dir / "kernels", print)
        if args.model is not None:
            _pack(_engine_config(args, cache_dir))
    except UnsupportedModel as error:
        print(error, file=sys.stderr)
        return UNSERVABLE
    except MillraceError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def lacks_weights(config: EngineConfig) -> bool:
    """True where a worker with these settings would have to pack weights first. No torch needed."""
    if config.backend not in ("auto", "cpu") or config.device not in ("auto", "cpu"):
        return False
    path = buildable_path(config.instruction_path)
    if path is None:
        return False
    checkpoint = read_config(config.model_path)
    if config.route == "generic" or not is_native(checkpoint):
        return False
    resolved = resolve_config(config, checkpoint, has_cuda=False, has_kernels=True)
    cache_dir = config.cache_dir or default_cache_dir()
    kind = weight_kind(resolved)
    return not packed_path(cache_dir, config.model_path, kind, path.name).is_file()


def _pack(config: EngineConfig) -> None:
    if not lacks_weights(config):
        return
    # Not before there is work: torch takes a second to import.
    from .model_runner import ModelRunner

    is_tty = sys.stdout.isatty()

    def report(text: str) -> None:
        print(f"\r\x1b[K{text}" if is_tty else text, end="" if is_tty else "\n", flush=True)

    ModelRunner.load(config, report if is_tty else only_last_steps(report))
    if is_tty:
        print()


def _engine_config(args: argparse.Namespace, cache_dir: Path) -> EngineConfig:
    return EngineConfig(
        model_path=args.model,
        name=args.model.name,
        dtype=args.dtype,
        device="cpu",
        backend="cpu",
        num_blocks=1,
        max_model_len=32,
        quantization=args.quantization,
        kv_dtype=args.kv_dtype,
        instruction_path=args.instruction_path,
        cache_dir=cache_dir,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m millrace.engine.prepare", description=__doc__)
    parser.add_argument("--model", type=Path, default=None, help="folder of the checkpoint")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, default="auto")
    parser.add_argument("--instruction-path", default="auto")
    parser.add_argument("--cache-dir", type=Path, default=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
