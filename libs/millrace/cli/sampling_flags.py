"""Sampling flags that `generate` and `chat` share, by the table of request fields."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from millrace.core.request_fields.field import Kind, RequestField
from millrace.core.request_fields.our_sampling import SAMPLING

if TYPE_CHECKING:
    from .client import SamplingOptions

# Of more than one answer, of log-probabilities and of token ids the commands show nothing.
_WITHOUT_FLAG = ("num_choices", "top_logprobs", "logit_bias", "stop_token_ids")
_FLAGS = tuple(known for known in SAMPLING if known.name not in _WITHOUT_FLAG)
_TYPES = {Kind.INTEGER: int, Kind.NUMBER: float}


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Adds model, address and sampling flags."""
    parser.add_argument("--model", default="", help="served name; default: the server's default")
    parser.add_argument("--address", help="host:port of a gateway; default: the running stack's")
    for known in _FLAGS:
        _add_flag(parser, known)


def _add_flag(parser: argparse.ArgumentParser, known: RequestField) -> None:
    flag = "--" + known.name.replace("_", "-")
    text = f"{known.meaning} Default: {known.default.partition(';')[0]}."
    if known.kind is Kind.FLAG:
        parser.add_argument(flag, action="store_true", default=None, help=text)
    elif known.kind is Kind.TEXTS:
        parser.add_argument(flag, action="append", help=f"{text} May be repeated.")
    else:
        parser.add_argument(flag, type=_TYPES[known.kind], help=text)


def sampling_of(args: argparse.Namespace) -> SamplingOptions:
    """What the flags say."""
    from .client import SamplingOptions
    from .streams import argument_text

    given = {known.name: known.meant(getattr(args, known.name)) for known in _FLAGS}
    if given["stop"] is not None:
        given["stop"] = tuple(argument_text(text, "--stop") for text in given["stop"])
    return SamplingOptions(**given)
