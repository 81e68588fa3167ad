"""Chat templates: conversations to text, in a sandbox, as transformers renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from millrace.core.errors import ConfigError, InvalidRequest

MAX_RENDERED_CHARS = 16 << 20


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


def _create_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template. `named_tokens` ("bos_token", ...) are variables of it.

    Raises ConfigError where the source is no template.
    """

    def __init__(self, source: str, named_tokens: Mapping[str, str]) -> None:
        self._variables = {**named_tokens, "tools": None, "documents": None}
        self._environment = _create_environment()
        try:
            self._template: Template = self._environment.from_string(source)
            self.literals = self._literal_text(source)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is broken: line {error.lineno}: {error}"
            ) from error

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

    def _literal_text(self, source: str) -> str:
        """Every string that the template itself can write, kept apart by NUL."""
        tree = self._environment.parse(source)
        texts = [node.data for node in tree.find_all(nodes.TemplateData)]
        texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        return "\0".join(texts)
