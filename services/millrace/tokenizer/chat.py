"""Chat templates: conversations to text, in a sandbox, as transformers renders them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from millrace.core.errors import ConfigError, InvalidRequest

MAX_RENDERED_CHARS = 16 << 20
# Turns of all loops together: far more than a conversation has, and less than a second.
MAX_LOOP_TURNS = 1_000_000
_COUNT_TURN = "millrace_count_turn"
_ROLE = re.compile(r"[A-Za-z][\w.-]{0,63}")


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here it only has a body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@pass_context
def _count_turn(context: Context, _: None) -> None:
    """A template that never ends would hold up everybody."""
    num_turns = getattr(context, "num_turns", 0) + 1
    if num_turns > MAX_LOOP_TURNS:
        raise TemplateError(f"its loops take over {MAX_LOOP_TURNS} turns")
    setattr(context, "num_turns", num_turns)  # noqa: B010


def _create_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.filters[_COUNT_TURN] = _count_turn
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template. `named_tokens` ("bos_token", ...) are variables of it.

    literals: every string that the template can write by itself, kept apart by NUL. words: those
    among them that it may compare roles with. Raises ConfigError if the source is no template.
    """

    def __init__(self, source: str, named_tokens: Mapping[str, str]) -> None:
        self._variables = {**named_tokens, "tools": None, "documents": None}
        self._environment = _create_environment()
        try:
            tree = self._environment.parse(source)
            self.literals = _literal_text(tree)
            self.words = _words(tree)
            self._template = self._compiled(tree)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is broken: line {error.lineno}: {error}"
            ) from error
        except Exception as error:
            # It is code of the checkpoint, and part of it runs when it is compiled.
            raise ConfigError(f"the chat template is broken: {error!r}") from error

    def _compiled(self, tree: nodes.Template) -> Template:
        """Changes `tree`: every turn of a loop is counted."""
        for loop in tree.find_all(nodes.For):
            count = nodes.Filter(nodes.Const(None), _COUNT_TURN, [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(count, lineno=loop.lineno))
        environment = self._environment
        return Template.from_code(
            environment, environment.compile(tree), environment.make_globals(None)
        )

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation as text, up to where the assistant's answer begins.

        Raises InvalidRequest with the template's own reason where it refuses the messages, or the
        text would be over MAX_RENDERED_CHARS.
        """
        parts: list[str] = []
        num_chars = 0
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=True, **self._variables
            ):
                parts.append(part)
                num_chars += len(part)
                if num_chars > MAX_RENDERED_CHARS:
                    raise InvalidRequest(
                        f"the conversation is over {MAX_RENDERED_CHARS} characters once rendered",
                        field="messages",
                        metadata={"max": str(MAX_RENDERED_CHARS)},
                    )
        except InvalidRequest:
            raise
        except Exception as error:
            # A template is code of the checkpoint: whatever it raises, it refuses these messages.
            reason = str(error) or type(error).__name__
            raise InvalidRequest(
                f"the model's chat template refuses the messages: {reason}", field="messages"
            ) from error
        return "".join(parts)


def _literal_text(tree: nodes.Template) -> str:
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    return "\0".join([*texts, *_constants(tree)])


def _words(tree: nodes.Template) -> frozenset[str]:
    """Words in comparisons, lists and dicts; a set of them may have a name of its own."""
    places = tree.find_all((nodes.Compare, nodes.Dict, nodes.List, nodes.Tuple))
    found = (constant for place in places for constant in _constants(place))
    return frozenset(filter(_ROLE.fullmatch, found))


def _constants(node: nodes.Node) -> Iterator[str]:
    for constant in node.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value
