"""What each verb is typed for: the examples at the foot of its help."""

from __future__ import annotations

import argparse

from millrace.config.help_format import HelpFormatter
from millrace.core.own_command import own_command

# Verb: arguments, and what they are for.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "up": (
        ("", "everything here, until Ctrl-C"),
        ("--detach", "in the background"),
        ("--workers 2 --quantization int8", "two workers with 8-bit weights"),
        ("--model ./my-model --http-port 8081", "a model folder, on another port"),
    ),
    "down": (
        ("", "stop the stack; requests that run may end"),
        ("--timeout-s 10 --force", "kill what runs after 10 s"),
    ),
    "status": (
        ("", "processes, load, and what the gateway says"),
        ("--watch", "again every 2 s until Ctrl-C"),
        ("--json", "for scripts; exit status 0 if requests are served"),
    ),
    "logs": (
        ("worker", "the last lines of one process"),
        ("--since 10m -f", "everything from 10 minutes ago, and on"),
    ),
    "generate": (
        ('"The river mill" --max-tokens 40', "go on with a text"),
        ('"1 + 1 =" --temperature 0 --json', "the likeliest text, with its counts"),
        ('"Once upon a time" --local', "without a stack"),
    ),
    "chat": (
        ("", "in turns; /help there"),
        ('"Name three rivers." --temperature 0.2', "one answer"),
        ('"Summarize this." < notes.txt', "a file behind the message"),
    ),
    "models": (
        ("list", "what is here"),
        ("pull smollm2", "the default model"),
        ("add ./model.gguf --name mine", "a file or folder of yours"),
        ("fit smollm2 --memory 4GB", "would it run in 4 GB?"),
    ),
    "trace": (
        ("--last", "the request just made"),
        ("4bf92f35", "by the first digits of its id"),
        ("--slowest 5", "the slowest ones, each with its reason"),
    ),
    "trace-ui": (
        ("", "ask, install, start"),
        ("--stop", "stop it"),
    ),
    "bench": (
        ("--concurrency 8 --requests 100", "8 streams at once"),
        ("--rate 2 --slo ttft=500,tpot=50", "2 requests/s, counting the good ones"),
        ("--url http://127.0.0.1:8000 --endpoint chat", "another OpenAI-compatible server"),
    ),
    "doctor": (("", "what is wrong, and what to do"),),
    "kernels": (("", "build what is missing"),),
    "config": (
        ("show gateway", "settings of one service"),
        ("show --running", "what the running stack was given"),
        ("init", "a settings file with everything commented out"),
    ),
    "bus": (("init --model smollm2", "for a NATS server that the stack does not start"),),
    "probe": (
        ("http://127.0.0.1:8080/ready", "does the gateway serve?"),
        ("grpc://127.0.0.1:50051 --timeout-s 1", "the same over gRPC"),
    ),
    "uninstall": (
        ("", "list, ask, remove"),
        ("--json", "list only"),
    ),
    "version": (("", "of Millrace and Python"),),
}


def add_examples(parser: argparse.ArgumentParser, verb: str) -> None:
    """Puts them below the help of a verb, with what was there before in between."""
    lines = ["examples:"]
    for arguments, meaning in EXAMPLES[verb]:
        lines += [f"  {own_command(f'{verb} {arguments}')}", f"      {meaning}"]
    parser.formatter_class = HelpFormatter
    parser.epilog = "\n\n".join(filter(None, (parser.epilog, "\n".join(lines))))
