"""The `millrace` command: finds the verb, imports it alone, runs it, turns errors into one line."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from millrace.config.environment import current_environment, poll_where_events_are_taken
from millrace.core.errors import MillraceError
from millrace.core.secret import redacted

from .exit_status import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from .streams import give_up, prepare_streams

VERBS = {
    "up": "start the whole stack here and keep it running",
    "down": "stop the running stack",
    "status": "show processes and load of the running stack",
    "logs": "show what the services logged",
    "generate": "continue a prompt",
    "chat": "talk with the model",
    "models": "pull, add, list and remove models; see what there is and fits",
    "trace": "show where the time of a request went",
    "trace-ui": "start a tracing UI beside the stack",
    "bench": "measure a server under load",
    "doctor": "check this machine and the stack, say what to do",
    "kernels": "build the CPU kernels; say which run here",
    "config": "show settings with value and origin",
    "bus": "prepare the message bus",
    "probe": "check the health of one address",
    "uninstall": "remove everything that Millrace keeps on this machine",
    "version": "show the version",
}
UNWRITTEN = "cannot write the output: {}"
MAX_SAID_CHARS = 200
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


class CommandParser(argparse.ArgumentParser):
    """Quotes no password in its errors, whatever the argument was meant to be."""

    def error(self, message: str) -> NoReturn:
        """Usage, one line, exit status 2."""
        super().error(redacted(message))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `millrace`; exits with the verb's status, never with a traceback."""
    prepare_streams()
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except OSError as exc:
        status = _failed(exc, UNWRITTEN.format(exc.strerror))
    sys.exit(_end_output(status))


def _end_output(status: int) -> int:
    """Writes what is left; a failure counts unless the verb has failed, and told so, before."""
    try:
        sys.stdout.flush()
    except OSError as exc:
        give_up(sys.stdout)
        if status == 0:
            return _failed(exc, UNWRITTEN.format(exc.strerror))
    return status


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview() + "\n")
        return 0
    if arguments[0] == "--version":
        arguments[0] = "version"
    poll_where_events_are_taken()
    try:
        return run_verb(arguments)
    except SystemExit as exc:
        # argparse has shown its help, or what is wrong with the arguments.
        return exc.code if isinstance(exc.code, int) else EXIT_FAILURE


def overview() -> str:
    """The text of `millrace --help`."""
    from millrace.core.own_command import own_command

    lines = ["usage: millrace <verb> [options]", "", "verbs:"]
    lines += [f"  {name:<10} {text}" for name, text in VERBS.items()]
    lines += ["", f"`{own_command()} <verb> --help` shows the options of a verb."]
    return "\n".join(lines)


def run_verb(arguments: Sequence[str]) -> int:
    """Runs one verb and returns its exit status; errors become one line on stderr."""
    name = arguments[0]
    if name not in VERBS:
        nearest = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.0)[0]
        return _fail(f"unknown verb {name}; did you mean {nearest}?", EXIT_USAGE)
    try:
        verb = importlib.import_module(f"millrace.cli.{name.replace('-', '_')}")
        return int(verb.run(verb_parser(name, verb).parse_args(arguments)))
    except MillraceError as exc:
        return _failed(exc, exc.message)
    except OSError as exc:
        return _failed(exc, _system_message(exc))
    except ModuleNotFoundError as exc:
        return _failed(exc, f"{exc.name} is not installed; `pip install millrace[all]` brings it")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as exc:
        return _failed(exc, _defect_message(exc, name))


def verb_parser(name: str, verb: ModuleType) -> CommandParser:
    """The parser of a command line with one verb, whose module is `verb`."""
    from .examples import add_examples

    parser = CommandParser(prog="millrace", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", metavar="verb")
    verb.add_parser(verbs)
    add_examples(verbs.choices[name], name)
    return parser


def _failed(exc: Exception, message: str) -> int:
    if isinstance(exc, BrokenPipeError):
        # The reader of a pipe went away, as `head` does: nothing to say, nobody to hear it.
        give_up(sys.stdout)
        give_up(sys.stderr)
        return EXIT_FAILURE
    if current_environment().get("MILLRACE_DEBUG") == "1":
        from .crash import shown_traceback

        print(shown_traceback(exc), end="", file=sys.stderr)
    return _fail(message, EXIT_FAILURE)


def _system_message(exc: OSError) -> str:
    """What the system refused, and the way out if it was under MILLRACE_HOME."""
    # Imported late, as the rest of what only errors need: help must be quick.
    from pathlib import Path

    from millrace.config.home import millrace_home

    if exc.filename is None:
        return str(exc)
    path, reason = Path(os.fsdecode(exc.filename)), exc.strerror or type(exc).__name__
    try:
        home = millrace_home()
    except MillraceError:
        return f"{path}: {reason}"
    is_of_home = path.is_relative_to(home.root) or home.root.is_relative_to(path)
    if exc.errno in UNUSABLE and is_of_home:
        return home.failure("use", path, reason)
    return f"{path}: {reason}"


def _defect_message(exc: Exception, verb: str) -> str:
    from .crash import keep_traceback, without_secrets

    path = keep_traceback(exc, verb)
    where = f"the traceback is in {path}" if path else "MILLRACE_DEBUG=1 shows the traceback"
    said = " ".join(without_secrets(f"{type(exc).__name__}: {exc}").split())
    return f"{verb} failed by a defect of ours ({said[:MAX_SAID_CHARS]}); {where}"


def _fail(message: str, status: int) -> int:
    try:
        print(f"millrace: {redacted(message)}", file=sys.stderr)
    except OSError:
        give_up(sys.stderr)
    return status


if __name__ == "__main__":
    main()
