"""`millrace chat`: talk with the model; one message as an argument or from a pipe, or many."""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial
from typing import Any

from millrace.core.chat import NO_CHAT_TEMPLATE
from millrace.core.errors import CODE_KEY, InvalidRequest, MillraceError
from millrace.core.own_command import own_command

from .chat_commands import command_fault, run_command
from .chat_input import LineSource, piped_line, read_entry, typed_line
from .client import Answer, InferenceClient, SamplingOptions, default_address
from .console import Console
from .conversation import Conversation
from .exit_status import EXIT_CONTINUED
from .sampling_flags import add_sampling_flags, sampling_of
from .streams import argument_text, read_text, tell_if_waiting

QUIET_S = 2.0
WAITING = "reading standard input to its end; `< /dev/null` gives none"
GREETING = '/help lists the commands, """ begins several lines, Ctrl-C stops an answer, /bye leaves'


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with the model",
        description="With a message, or with text on standard input, one answer; text on standard "
        "input comes behind the message, after an empty line. Else line by line: /help there.",
    )
    parser.add_argument("message", nargs="?", help="ask this one thing; default: talk in turns")
    parser.add_argument("--system", help="instructions that come before everything; default: none")
    parser.add_argument(
        "--lines", action="store_true", help="each line of standard input is a turn, or a /command"
    )
    parser.add_argument("--stats", action="store_true", help="show counts, speed and trace id")
    # For the first answer of `up`, which must not fail for want of a chat template.
    parser.add_argument("--else-continue", help=argparse.SUPPRESS)
    add_sampling_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Answers the message, or every line until the end."""
    system = "" if args.system is None else argument_text(args.system, "--system")
    is_interactive = sys.stdin.isatty() and args.message is None
    message = None if is_interactive or args.lines else _message(args)
    if args.lines and args.message is not None:
        raise InvalidRequest("--lines reads messages from standard input; give none beside it")
    with asyncio.Runner() as runner:
        client = runner.run(_connect(args.address or default_address()))
        conversation = Conversation(client, args.model, sampling_of(args), system)
        console = Console()
        try:
            if message is not None:
                return runner.run(_answer_once(args, client, conversation, message, console))
            next_line: LineSource = piped_line
            if is_interactive:
                # Line editing and history for input(), where Python has it.
                import readline  # noqa: F401

                console.line(console.paint(GREETING, "grey"))
                next_line = partial(typed_line, console)
            chat = _Chat(runner, conversation, console, is_interactive, has_stats=args.stats)
            return chat.run(next_line)
        except InvalidRequest as exc:
            raise _advised(exc) from exc
        finally:
            runner.run(client.close())


def _message(args: argparse.Namespace) -> str:
    """The argument, and behind it what comes from a pipe or file. Raises `InvalidRequest`."""
    parts = [] if args.message is None else [argument_text(args.message, "the message")]
    if not sys.stdin.isatty():
        # Whoever starts the command without a terminal may have left a pipe open by mistake.
        tell_if_waiting(QUIET_S, WAITING)
        parts.append(read_text("standard input").strip("\n"))
    message = "\n\n".join(part for part in parts if part.strip())
    if not message:
        raise InvalidRequest("the message is empty")
    return message


async def _connect(address: str) -> InferenceClient:
    """A channel belongs to the loop that is running when it is made."""
    return InferenceClient(address)


async def _answer_once(
    args: argparse.Namespace,
    client: InferenceClient,
    conversation: Conversation,
    message: str,
    console: Console,
) -> int:
    try:
        answer = await conversation.say(message, console)
    except InvalidRequest as exc:
        if not _lacks_template(exc) or args.else_continue is None:
            raise
        answer = await _continue(client, conversation.sampling, args.else_continue, console)
        _show_end(console, answer, has_stats=args.stats)
        return EXIT_CONTINUED
    _show_end(console, answer, has_stats=args.stats)
    return 0


async def _continue(
    client: InferenceClient, sampling: SamplingOptions, text: str, console: Console
) -> Answer:
    console.line("This model has no chat template: it continues a text instead.")
    console.write(console.paint(text, "cyan"))
    return await client.generate(text, "", sampling, console.write)


def _lacks_template(exc: MillraceError) -> bool:
    return exc.metadata.get(CODE_KEY) == NO_CHAT_TEMPLATE


def _advised(exc: InvalidRequest) -> InvalidRequest:
    """The same; of a model that cannot chat with what to type instead."""
    if not _lacks_template(exc):
        return exc
    advice = f"{exc.message}: {own_command('generate TEXT')}"
    return InvalidRequest(advice, field=exc.field, metadata=exc.metadata)


class _Chat:
    """Turns and commands, one after the other."""

    def __init__(
        self,
        runner: asyncio.Runner,
        conversation: Conversation,
        console: Console,
        is_interactive: bool,
        *,
        has_stats: bool,
    ) -> None:
        self._runner = runner
        self._conversation = conversation
        self._console = console
        self._is_interactive = is_interactive
        self._has_stats = has_stats

    def run(self, next_line: LineSource) -> int:
        """Until the end of input or /bye; 1 where a turn or a command has failed."""
        status = 0
        while True:
            try:
                entry = read_entry(next_line)
            except KeyboardInterrupt:
                if not self._is_interactive:
                    raise
                # The message is given up, not the conversation.
                self._console.line()
                continue
            if entry is None:
                return status
            if entry.is_command:
                outcome = self._command(entry.text)
                if outcome is None:
                    return status
            else:
                outcome = not entry.text.strip() or self._turn(entry.text)
            status = status if outcome else 1

    def _command(self, text: str) -> bool | None:
        """None to leave, False where it failed."""
        try:
            lines = run_command(text, self._conversation)
        except (MillraceError, OSError, RuntimeError) as exc:
            print(f"millrace: {command_fault(exc)}", file=sys.stderr)
            return False
        for line in lines or ():
            self._console.line(self._console.paint(line, "grey"))
        return None if lines is None else True

    def _turn(self, message: str) -> bool:
        """False where it failed; Ctrl-C ends the answer, not the conversation."""
        console = self._console
        try:
            answer = self._runner.run(self._conversation.say(message, console))
        except KeyboardInterrupt:
            console.line(console.paint(" [stopped]", "grey"))
            return True
        except MillraceError as exc:
            if _lacks_template(exc):
                # No turn can succeed.
                raise
            console.line()
            print(f"millrace: {exc.message}", file=sys.stderr)
            return False
        _show_end(console, answer, has_stats=self._has_stats)
        return True


def _show_end(console: Console, answer: Answer, *, has_stats: bool) -> None:
    console.line()
    if has_stats:
        console.line(console.paint(f"  {answer.summary()}", "grey"))
        if answer.trace_id:
            console.line(answer.trace_hint())
