"""The fields of ours that say how tokens are drawn: those of `SamplingParams`."""

from __future__ import annotations

from types import MappingProxyType

from .field import GENERATING, OPENAI, Kind, Place, RequestField, at

MAX_LOGIT_BIAS_ENTRIES = 1024
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_NUM_CHOICES = 16
MIN_SEED = -(2**63)
MAX_SEED = 2**64 - 1
MAX_INT32 = 2**31 - 1
# What POST /v1/completions generates at most if it does not say, as in OpenAI's API.
COMPLETIONS_MAX_TOKENS = 16


def _sampling(name: str) -> tuple[str]:
    return (f"SamplingParams.{name}",)


SAMPLING: tuple[RequestField, ...] = (
    RequestField(
        name="max_tokens",
        kind=Kind.INTEGER,
        meaning="Most tokens to generate.",
        names=MappingProxyType(
            {
                Place.CHAT: ("max_completion_tokens", "max_tokens"),
                Place.COMPLETIONS: ("max_tokens", "max_completion_tokens"),
                Place.GENERATE: ("max_tokens", "max_completion_tokens"),
            }
        ),
        default=f"what is left of the context; {COMPLETIONS_MAX_TOKENS} on {Place.COMPLETIONS}",
        proto=_sampling("max_tokens"),
        low=1,
        high=MAX_INT32,
        hint="leave it out for the default",
    ),
    RequestField(
        name="min_tokens",
        kind=Kind.INTEGER,
        meaning="Fewest tokens to generate before any stop condition counts.",
        names=at(GENERATING, "min_tokens"),
        default="0",
        proto=_sampling("min_tokens"),
        low=0,
        high=MAX_INT32,
        neutral=0,
    ),
    RequestField(
        name="temperature",
        kind=Kind.NUMBER,
        meaning="How freely tokens are drawn; 0 always takes the likeliest.",
        names=at(GENERATING, "temperature"),
        default="the model's, else 1",
        proto=_sampling("temperature"),
        low=0,
        high=2,
        neutral=1.0,
    ),
    RequestField(
        name="top_p",
        kind=Kind.NUMBER,
        meaning="Keeps the smallest set of tokens whose probability reaches this; 1 keeps all.",
        names=at(GENERATING, "top_p"),
        default="the model's, else 1",
        proto=_sampling("top_p"),
        low=0,
        high=1,
        is_low_open=True,
        neutral=1.0,
        hint="1 keeps all, and temperature 0 takes the likeliest",
    ),
    RequestField(
        name="top_k",
        kind=Kind.INTEGER,
        meaning="Keeps this many of the likeliest tokens; 0 keeps all, and so does -1.",
        names=at(GENERATING, "top_k"),
        default="the model's, else 0",
        proto=_sampling("top_k"),
        low=0,
        high=MAX_INT32,
        neutral=0,
        spellings=((-1, 0),),
        hint="0 keeps all",
    ),
    RequestField(
        name="min_p",
        kind=Kind.NUMBER,
        meaning="Keeps tokens at least this fraction as likely as the likeliest; 0 keeps all.",
        names=at(GENERATING, "min_p"),
        default="the model's, else 0",
        proto=_sampling("min_p"),
        low=0,
        high=1,
        neutral=0.0,
    ),
    RequestField(
        name="repetition_penalty",
        kind=Kind.NUMBER,
        meaning="Divides positive and multiplies negative logits of tokens seen before.",
        names=at(GENERATING, "repetition_penalty"),
        default="the model's, else 1",
        proto=_sampling("repetition_penalty"),
        low=0,
        high=2,
        is_low_open=True,
        neutral=1.0,
        hint="1 changes nothing",
    ),
    RequestField(
        name="presence_penalty",
        kind=Kind.NUMBER,
        meaning="Subtracted once from the logit of each token in the output so far.",
        names=at(GENERATING, "presence_penalty"),
        default="0",
        proto=_sampling("presence_penalty"),
        low=-2,
        high=2,
        neutral=0.0,
    ),
    RequestField(
        name="frequency_penalty",
        kind=Kind.NUMBER,
        meaning="Subtracted per occurrence from the logit of each token in the output so far.",
        names=at(GENERATING, "frequency_penalty"),
        default="0",
        proto=_sampling("frequency_penalty"),
        low=-2,
        high=2,
        neutral=0.0,
    ),
    RequestField(
        name="logit_bias",
        kind=Kind.BIASES,
        meaning=f"Added to the logits of single tokens; at most {MAX_LOGIT_BIAS_ENTRIES} entries.",
        names=at(GENERATING, "logit_bias"),
        default="none",
        proto=_sampling("logit_bias"),
        low=-100,
        high=100,
    ),
    RequestField(
        name="seed",
        kind=Kind.INTEGER,
        meaning="Same seed, same request: same text. Signed and unsigned 64 bits are the same.",
        names=at(GENERATING, "seed"),
        default="drawn, and told in the reply",
        proto=_sampling("seed"),
        low=MIN_SEED,
        high=MAX_SEED,
    ),
    RequestField(
        name="stop",
        kind=Kind.TEXTS,
        meaning=f"Up to {MAX_STOP_STRINGS} strings that end the output; a match is no part of it.",
        names=at(GENERATING, "stop"),
        default="none",
        proto=_sampling("stop"),
    ),
    RequestField(
        name="stop_token_ids",
        kind=Kind.INTEGERS,
        meaning=f"Up to {MAX_STOP_TOKEN_IDS} token ids that end the output, beside the model's.",
        names=at(GENERATING, "stop_token_ids"),
        default="none",
        proto=_sampling("stop_token_ids"),
    ),
    RequestField(
        name="ignore_eos",
        kind=Kind.FLAG,
        meaning="True: the model's end-of-sequence token does not end the output.",
        names=at(GENERATING, "ignore_eos"),
        default="false",
        proto=_sampling("ignore_eos"),
        neutral=False,
    ),
    RequestField(
        name="top_logprobs",
        kind=Kind.INTEGER,
        meaning="How many of the likeliest tokens to tell with each token's log-probability.",
        names=MappingProxyType(
            {Place.CHAT: ("top_logprobs",), Place.COMPLETIONS: ("logprobs",)},
        ),
        default="no log-probabilities",
        proto=_sampling("top_logprobs"),
        low=0,
        high=MAX_TOP_LOGPROBS,
        neutral=0,
        spellings=((False, None),),
        hint="it says how many alternatives to tell",
        instead=MappingProxyType(
            {Place.GENERATE: f"log-probabilities are told by {Place.COMPLETIONS}"}
        ),
    ),
    RequestField(
        name="num_choices",
        kind=Kind.INTEGER,
        meaning="How many independent answers to generate.",
        names=at(OPENAI, "n"),
        default="1",
        proto=_sampling("num_choices"),
        low=1,
        high=MAX_NUM_CHOICES,
        neutral=1,
        instead=MappingProxyType(
            {Place.GENERATE: f"more than one answer is given by {Place.COMPLETIONS}"}
        ),
    ),
)
