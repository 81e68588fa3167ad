"""Sampling as `generate` and `chat` let one choose it, by the table of request fields."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from millrace.core.errors import InvalidRequest
from millrace.core.request_fields.field import Kind, RequestField
from millrace.core.request_fields.our_sampling import SAMPLING

if TYPE_CHECKING:
    from .client import SamplingOptions

# Of more than one answer, of log-probabilities and of token ids the commands show nothing.
_WITHOUT_FLAG = ("num_choices", "top_logprobs", "logit_bias", "stop_token_ids")
_FLAGS = {known.name: known for known in SAMPLING if known.name not in _WITHOUT_FLAG}
_TYPES = {Kind.INTEGER: int, Kind.NUMBER: float}
_WORDS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Adds model, address and sampling flags."""
    parser.add_argument("--model", default="", help="served name; default: the server's default")
    parser.add_argument("--address", help="host:port of a gateway; default: the running stack's")
    group = parser.add_argument_group("how the text is drawn")
    for known in _FLAGS.values():
        _add_flag(group, known)


def _add_flag(group: argparse._ArgumentGroup, known: RequestField) -> None:
    flag = "--" + known.name.replace("_", "-")
    text = f"{known.meaning} Default: {default_text(known.name)}."
    if known.kind is Kind.FLAG:
        group.add_argument(flag, action="store_true", default=None, help=text)
    elif known.kind is Kind.TEXTS:
        group.add_argument(flag, action="append", metavar="TEXT", help=f"{text} May be repeated.")
    else:
        group.add_argument(flag, type=_TYPES[known.kind], metavar="N", help=text)


def sampling_of(args: argparse.Namespace) -> SamplingOptions:
    """What the flags say."""
    from .client import SamplingOptions
    from .streams import argument_text

    given = {name: known.meant(getattr(args, name)) for name, known in _FLAGS.items()}
    if given["stop"] is not None:
        given["stop"] = tuple(argument_text(text, "--stop") for text in given["stop"])
    return SamplingOptions(**given)


def sampling_names() -> list[str]:
    """What can be chosen."""
    return list(_FLAGS)


def default_text(name: str) -> str:
    """What holds if it is not chosen."""
    return _FLAGS[name].default.partition(";")[0]


def known_value(sampling: SamplingOptions, name: str) -> Any:
    """What was chosen, None if nothing was."""
    return getattr(sampling, name)


def read_value(name: str, text: str) -> Any:
    """The value that a text means. Raises `InvalidRequest` for one that is of no such kind.

    Strings may be written as JSON has them, one or a list: `"\\n"`, `["a", "b"]`.
    """
    kind = _FLAGS[name].kind
    try:
        if kind is Kind.TEXTS:
            return _texts(text)
        value = _WORDS[text.lower()] if kind is Kind.FLAG else _TYPES[kind](text)
    except (KeyError, ValueError):
        raise InvalidRequest(f"{name} is {text!r}; it must be {kind}", field=name) from None
    return _FLAGS[name].meant(value)


def _texts(text: str) -> tuple[str, ...]:
    if text[0] not in '["':
        return (text,)
    value = json.loads(text)
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in values):
        raise ValueError(text)
    return tuple(values)


def with_value(sampling: SamplingOptions, name: str, value: Any) -> SamplingOptions:
    """With another value, None for none. Raises `InvalidRequest` for one that is not allowed."""
    changed = dataclasses.replace(sampling, **{name: value})
    changed.params(is_by_flag=False)
    return changed
