"""`millrace chat`: talk with the model; one message as an argument, or line by line."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from millrace.core.errors import InvalidRequest, MillraceError

from .client import Answer, InferenceClient, SamplingOptions, default_address
from .console import Console
from .sampling_flags import add_sampling_flags, sampling_of
from .streams import argument_text, read_line

GREETING = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer"


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("chat", help="talk with the model")
    parser.add_argument("message", nargs="?", help="ask this one thing; else line by line")
    parser.add_argument("--system", help="instructions that come before everything")
    parser.add_argument("--stats", action="store_true", help="show counts, speed and trace id")
    add_sampling_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Answers the message, or every line of stdin until its end."""
    message = None if args.message is None else argument_text(args.message, "the message")
    system = None if args.system is None else argument_text(args.system, "--system")
    with asyncio.Runner() as runner:
        client = runner.run(_connect(args.address or default_address()))
        conversation = Conversation(client, args.model, sampling_of(args), system)
        console = Console()
        try:
            if message is not None:
                if not message.strip():
                    raise InvalidRequest("the message is empty")
                answer = runner.run(conversation.say(message, console))
                _show_end(console, answer, has_stats=args.stats)
                return 0
            return _converse(runner, conversation, console, has_stats=args.stats)
        finally:
            runner.run(client.close())


async def _connect(address: str) -> InferenceClient:
    """A channel belongs to the loop that is running when it is made."""
    return InferenceClient(address)


class Conversation:
    """The turns so far, sent again with each message."""

    def __init__(
        self, client: InferenceClient, model: str, sampling: SamplingOptions, system: str | None
    ) -> None:
        self._client = client
        self._model = model
        self._sampling = sampling
        self._system = [("system", system)] if system else []
        self.turns: list[tuple[str, str]] = []

    def reset(self) -> None:
        """Forgets everything but the instructions."""
        self.turns.clear()

    async def say(self, message: str, console: Console) -> Answer:
        """Streams the answer to the console. A turn that fails or is stopped is not kept."""
        asked = [*self._system, *self.turns, ("user", message)]
        answer = await self._client.chat(asked, self._model, self._sampling, console.write)
        self.turns += [("user", message), ("assistant", answer.text)]
        return answer


def _converse(
    runner: asyncio.Runner, conversation: Conversation, console: Console, *, has_stats: bool
) -> int:
    is_interactive = sys.stdin.isatty()
    if is_interactive:
        # Line editing and history for input(), where Python has it.
        import readline  # noqa: F401

        console.line(console.paint(GREETING, "grey"))
    status = 0
    while (line := _next_line(console, is_interactive)) is not None:
        message = line.strip()
        if message == "/exit":
            break
        if message == "/reset":
            conversation.reset()
            console.line(console.paint("forgotten", "grey"))
        elif message.startswith("/"):
            console.line(f"{message.split()[0]} is not a command: {GREETING}")
        elif message:
            is_fine = _take_turn(runner, conversation, message, console, has_stats=has_stats)
            status = status if is_fine else 1
    return status


def _next_line(console: Console, is_interactive: bool) -> str | None:
    if not is_interactive:
        return read_line("a line of standard input") or None
    while True:
        try:
            return argument_text(input("> "), "the message")
        except (InvalidRequest, UnicodeDecodeError) as exc:
            print(f"millrace: {exc}", file=sys.stderr)
        except EOFError:
            console.line()
            return None
        except KeyboardInterrupt:
            console.line()


def _take_turn(
    runner: asyncio.Runner,
    conversation: Conversation,
    message: str,
    console: Console,
    *,
    has_stats: bool,
) -> bool:
    """False where it failed; Ctrl-C ends the answer, not the conversation."""
    try:
        answer = runner.run(conversation.say(message, console))
    except KeyboardInterrupt:
        console.line(console.paint(" [stopped]", "grey"))
        return True
    except MillraceError as exc:
        console.line()
        print(f"millrace: {exc.message}", file=sys.stderr)
        return False
    _show_end(console, answer, has_stats=has_stats)
    return True


def _show_end(console: Console, answer: Answer, *, has_stats: bool) -> None:
    console.line()
    if has_stats:
        console.line(console.paint(f"  {answer.summary()}", "grey"))
        if answer.trace_id:
            console.line(f"  trace {answer.trace_id}: millrace trace {answer.trace_id}")
