"""`millrace generate`: continues a prompt, through the stack or with the engine alone."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from millrace.core.errors import InvalidRequest

from .console import Console
from .sampling_flags import add_sampling_flags, sampling_of
from .streams import argument_text, read_text

if TYPE_CHECKING:
    from .client import Answer


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("generate", help="continue a prompt")
    parser.add_argument("prompt", help="text to continue; - reads stdin")
    parser.add_argument("--local", action="store_true", help="run the engine here, no services")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="number type with --local; default: auto",
    )
    parser.add_argument("--stats", action="store_true", help="show counts, speed and trace id")
    parser.add_argument("--json", action="store_true", help="the whole answer at its end")
    add_sampling_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Streams the continuation to stdout."""
    given = args.prompt
    prompt = read_text("standard input") if given == "-" else argument_text(given, "the prompt")
    if not prompt:
        raise InvalidRequest("the prompt is empty")
    if args.local:
        return _run_local(args, prompt)
    return asyncio.run(_run_remote(args, prompt))


def _run_local(args: argparse.Namespace, prompt: str) -> int:
    from .local_generation import generate_locally

    console = Console()
    on_text = _ignore if args.json else console.write
    answer = generate_locally(prompt, args.model, args.dtype, sampling_of(args), on_text)
    return _show_end(args, console, answer)


async def _run_remote(args: argparse.Namespace, prompt: str) -> int:
    from .client import InferenceClient, default_address

    console = Console()
    client = InferenceClient(args.address or default_address())
    on_text = _ignore if args.json else console.write
    try:
        answer = await client.generate(prompt, args.model, sampling_of(args), on_text)
    finally:
        await client.close()
    return _show_end(args, console, answer)


def _show_end(args: argparse.Namespace, console: Console, answer: Answer) -> int:
    if args.json:
        console.json(asdict(answer))
        return 0
    console.line()
    if args.stats:
        notes = Console(sys.stderr)
        notes.line(notes.paint(f"  {answer.summary()}", "grey"))
        if answer.trace_id:
            notes.line(answer.trace_hint())
    return 0


def _ignore(text: str) -> None:
    """With --json the text comes at the end."""
