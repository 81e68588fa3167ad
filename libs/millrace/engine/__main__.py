"""`python -m millrace.engine`: one model, some prompts, no services."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from millrace.core.errors import MillraceError
from millrace.core.sampling import SamplingParams, draw_seed

from .config import DTYPES, QUANTIZATIONS, ROUTES, EngineConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, generates, and returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        _generate(args)
    except MillraceError as error:
        print(f"millrace.engine: {error.message}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m millrace.engine", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--prompt", action="append", required=True, help="may be given repeatedly")
    parser.add_argument("--chat", action="store_true", help="put prompts into the chat template")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--route", choices=ROUTES, default="auto")
    parser.add_argument("--backend", choices=("auto", "cpu", "torch"), default="auto")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--num-threads", type=int, default=0, help="0 (default): all usable CPUs")
    return parser


def _generate(args: argparse.Namespace) -> None:
    params = SamplingParams(
        max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed
    )
    config = EngineConfig(
        model_path=args.model,
        name=args.model.name,
        dtype=args.dtype,
        device=args.device,
        route=args.route,
        num_threads=args.num_threads,
        backend=args.backend,
        quantization=args.quantization,
    )
    # Not before the command line is known to be right: torch takes a second to import.
    from .engine import create_engine
    from .local import LocalGenerator, LocalRequest
    from .text import LocalTextGenerator

    engine = create_engine(config, _print_progress)
    texts = LocalTextGenerator(LocalGenerator(engine), args.model)
    params = params.resolved(engine.info.default_sampling)
    seed = draw_seed() if args.seed is None else args.seed
    is_alone = len(args.prompt) == 1
    start_s = time.perf_counter()
    outputs = texts.generate(
        args.prompt,
        LocalRequest((), args.max_tokens, params.spec(seed)),
        chat=args.chat,
        on_text=_print_piece if is_alone else None,
    )
    elapsed_s = time.perf_counter() - start_s
    if is_alone:
        print()
    else:
        for prompt, output in zip(args.prompt, outputs, strict=True):
            print(f"{prompt!r}: {output.text}")
    num_tokens = sum(output.num_output_tokens for output in outputs)
    print(
        f"{engine.info.architecture}, {engine.info.dtype}: {num_tokens} tokens "
        f"in {elapsed_s:.2f} s, {num_tokens / elapsed_s:.1f} tokens/s",
        file=sys.stderr,
    )


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr)


def _print_piece(_: int, text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
