"""The `millrace` command: finds the verb, imports it alone, runs it, turns errors into one line."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from millrace.config.environment import current_environment, poll_where_events_are_taken
from millrace.core.errors import MillraceError

VERBS = {
    "up": "start the whole stack here and keep it running",
    "down": "stop the running stack",
    "status": "show the processes of the running stack",
    "logs": "show what the services logged",
    "generate": "continue a prompt",
    "chat": "talk with the model",
    "models": "pull, add, list and remove models; see what fits",
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
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `millrace`; exits with the verb's status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        sys.exit(0)
    if arguments[0] == "--version":
        arguments[0] = "version"
    poll_where_events_are_taken()
    sys.exit(run_verb(arguments))


def overview() -> str:
    """The text of `millrace --help`."""
    lines = ["usage: millrace <verb> [options]", "", "verbs:"]
    lines += [f"  {name:<10} {text}" for name, text in VERBS.items()]
    lines += ["", "`millrace <verb> --help` shows the options of a verb."]
    return "\n".join(lines)


def run_verb(arguments: Sequence[str]) -> int:
    """Runs one verb and returns its exit status; errors become one line on stderr."""
    name = arguments[0]
    if name not in VERBS:
        nearest = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.0)[0]
        return _fail(f"unknown verb {name}; did you mean {nearest}?", EXIT_USAGE)
    try:
        verb = importlib.import_module(f"millrace.cli.{name.replace('-', '_')}")
        parser = argparse.ArgumentParser(prog="millrace", allow_abbrev=False)
        verb.add_parser(parser.add_subparsers(dest="verb", metavar="verb"))
        return int(verb.run(parser.parse_args(arguments)))
    except MillraceError as exc:
        return _failed(exc, exc.message)
    except OSError as exc:
        return _failed(exc, str(exc))
    except ModuleNotFoundError as exc:
        return _failed(exc, f"{exc.name} is not installed; `pip install millrace[all]` brings it")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _failed(exc: Exception, message: str) -> int:
    if current_environment().get("MILLRACE_DEBUG") == "1":
        raise exc
    if isinstance(exc, BrokenPipeError):
        # The reader of a pipe went away, as `head` does: nothing to say, nobody to hear it.
        sys.stderr.close()
        return EXIT_FAILURE
    return _fail(message, EXIT_FAILURE)


def _fail(message: str, status: int) -> int:
    print(f"millrace: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
