"""The table of request fields is whole: none of the protos, of ours or of OpenAI's is forgotten."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from millrace.core.request_fields.field import (
    BODIES,
    GENERATING,
    FieldNames,
    ForeignField,
    Kind,
    Place,
    RequestField,
    camel_case,
    snake_case,
)
from millrace.core.request_fields.ignored import MAX_NAME_CHARS, MAX_NAMES, IgnoredFields
from millrace.core.request_fields.our_sampling import SAMPLING
from millrace.core.request_fields.table import FIELDS, FOREIGN, PROTO_GROUPS, TABLES
from millrace.core.sampling import SamplingDefaults, SamplingParams, SamplingSpec
from millrace.v1 import inference_pb2, types_pb2

# What a generating request consists of.
MESSAGES: tuple[Any, ...] = (
    inference_pb2.GenerateRequest,
    inference_pb2.ChatRequest,
    inference_pb2.GenerateBatchRequest,
    inference_pb2.RequestOptions,
    inference_pb2.TokenIds,
    types_pb2.SamplingParams,
    types_pb2.Message,
)
PROTO_FIELDS = sorted(
    f"{message.DESCRIPTOR.name}.{field.name}"
    for message in MESSAGES
    for field in message.DESCRIPTOR.fields
)
TABLE_FIELDS = Counter([path for field in FIELDS for path in field.proto] + list(PROTO_GROUPS))


@pytest.mark.parametrize("path", PROTO_FIELDS)
def test_every_field_of_a_request_proto_is_in_the_table(path: str) -> None:
    assert TABLE_FIELDS[path] == 1


@pytest.mark.parametrize("path", sorted(TABLE_FIELDS))
def test_every_proto_field_of_the_table_exists(path: str) -> None:
    assert path in PROTO_FIELDS


def test_sampling_fields_are_those_of_the_params() -> None:
    declared = [each.name for each in fields(SamplingParams) if each.name != "names"]
    assert declared == [
        *("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed"),
        *("stop", "stop_token_ids", "ignore_eos", "top_logprobs", "num_choices"),
    ]
    assert [known.name for known in SAMPLING] == declared
    for part in (SamplingSpec, SamplingDefaults):
        assert {each.name for each in fields(part)} <= set(declared)


@pytest.mark.parametrize("known", SAMPLING, ids=lambda known: known.name)
def test_neutral_value_is_the_default_of_the_params(known: RequestField) -> None:
    if known.neutral is not None and known.name != "top_logprobs":
        assert getattr(SamplingParams().resolved(), known.name) == known.neutral


def test_only_request_options_leave_the_answer_alone() -> None:
    alone = {known.name for known in FIELDS if not known.changes_answer}
    assert alone == {
        *("priority", "timeout_ms", "cache", "idempotency_key"),
        *("stream", "stream_options", "logprobs", "include_usage"),
    }


@pytest.mark.parametrize("place", Place)
def test_a_name_means_one_thing_in_a_place(place: Place) -> None:
    names = [name for field in FIELDS for name in field.names.get(place, ())]
    names += [field.name for field in FOREIGN if place in field.places]
    assert not [name for name, count in Counter(names).items() if count > 1]


@pytest.mark.parametrize("field", FOREIGN, ids=lambda field: f"{field.name}-{field.places[0]}")
def test_every_foreign_field_says_what_it_is_and_what_to_do(field: ForeignField) -> None:
    assert snake_case(field.name) == field.name
    assert field.servers
    assert field.meaning.endswith(".")
    assert field.meaning[0].isupper()
    assert field.is_harmless or bool(field.feature) != bool(field.say)
    assert field.say not in TABLES[Place.CHAT].foreign


@pytest.mark.parametrize("known", FIELDS, ids=lambda known: known.name)
def test_every_field_of_ours_says_what_it_is(known: RequestField) -> None:
    assert known.meaning.endswith(".")
    assert known.default
    assert (known.kind is Kind.WORD) == bool(known.choices)


def test_the_table_knows_the_fields_of_many_servers() -> None:
    assert len(FOREIGN) > 250


@pytest.mark.parametrize(
    ("place", "schema"),
    [
        (Place.CHAT, chat_create_params.CompletionCreateParamsBase),
        (Place.COMPLETIONS, completion_create_params.CompletionCreateParamsBase),
    ],
)
def test_every_field_of_the_openai_api_is_known(place: Place, schema: Any) -> None:
    table = TABLES[place]
    unknown = [
        name
        for name in schema.__annotations__
        if name not in table.ours and name not in table.foreign
    ]
    assert not unknown


@pytest.mark.parametrize("place", GENERATING)
def test_every_route_takes_every_sampling_field_or_says_where_it_goes(place: Place) -> None:
    for known in SAMPLING:
        assert known.names.get(place) or known.instead.get(place), known.name


@pytest.mark.parametrize("place", BODIES)
def test_field_of_another_route_gets_advice(place: Place) -> None:
    for name, known in TABLES[place].elsewhere.items():
        advice = TABLES[place].advice(name, known)
        assert name in advice
        assert place in advice


@pytest.mark.parametrize(
    ("name", "snake", "camel"),
    [("maxTokens", "max_tokens", "maxTokens"), ("top-p", "top_p", "topP"), ("N", "n", "n")],
)
def test_spellings(name: str, snake: str, camel: str) -> None:
    assert snake_case(name) == snake
    assert camel_case(snake) == camel


def test_a_name_that_the_client_did_not_change_is_its_own() -> None:
    names = FieldNames(max_tokens="maxTokens")
    assert (names["max_tokens"], names["top_p"]) == ("maxTokens", "top_p")


def test_ignored_names_are_bounded_printable_and_told_once() -> None:
    ignored = IgnoredFields()
    for number in range(1000):
        ignored.add(f"\r\nx: {number} {'é' * 100}", is_harmless=number % 2 == 0)
        ignored.add("user", is_harmless=True)

    text = ignored.header_text()
    assert (ignored.num_harmless, ignored.num_unknown) == (1500, 500)
    assert text.isascii()
    assert text.isprintable()
    assert text.count("user") == 1
    assert text.endswith(", ...")
    assert len(text) < (MAX_NAMES + 1) * (MAX_NAME_CHARS + 2)


def test_nothing_ignored_is_falsy() -> None:
    assert not IgnoredFields()
