"""Sampling flags that `generate` and `chat` share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import SamplingOptions


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Adds model, address and sampling flags."""
    parser.add_argument("--model", default="", help="served name; default: the server's default")
    parser.add_argument("--address", help="host:port of a gateway; default: the running stack's")
    parser.add_argument("--max-tokens", type=int, help="most tokens to generate")
    parser.add_argument("--temperature", type=float, help="0 is greedy; default 1")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--seed", type=int, help="same seed, same request: same text")
    parser.add_argument("--stop", action="append", default=[], help="may be repeated")
    parser.add_argument("--ignore-eos", action="store_true", default=None)


def sampling_of(args: argparse.Namespace) -> SamplingOptions:
    """What the flags say."""
    from .client import SamplingOptions

    return SamplingOptions(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        seed=args.seed,
        ignore_eos=args.ignore_eos,
        stop=tuple(args.stop),
    )
