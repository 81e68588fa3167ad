"""Every field of the table on every route and both edges: it changes the request, is refused, or
is told. Random values are read or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.core.errors import InvalidRequest
from millrace.core.request_fields import table
from millrace.core.request_fields.field import (
    GENERATING,
    ForeignField,
    Kind,
    Place,
    RequestField,
    camel_case,
    is_among,
    snake_case,
)
from millrace.core.request_fields.ignored import MAX_NAMES, IgnoredFields
from millrace.core.request_fields.our_sampling import SAMPLING
from millrace.core.request_fields.table import FIELDS, FOREIGN, TABLES
from millrace.gateway import servicer
from millrace.gateway.generation import GenerationRequest
from millrace.gateway.http.openai_chat import parse_chat
from millrace.gateway.http.openai_completions import parse_completion
from millrace.gateway.http.plain import parse_generate
from millrace.v1 import inference_pb2, types_pb2

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

HI = [{"role": "user", "content": "hi"}]
BASE: Mapping[Place, dict[str, Any]] = {
    Place.CHAT: {"messages": HI},
    Place.COMPLETIONS: {"prompt": "hi"},
    Place.GENERATE: {"prompt": "hi"},
}
# What a field may be given that is not its default, and what the request then says.
VALUES: Mapping[str, tuple[Any, Any]] = {
    "max_tokens": (5, 5),
    "min_tokens": (2, 2),
    "temperature": (0.5, 0.5),
    "top_p": (0.25, 0.25),
    "top_k": (7, 7),
    "min_p": (0.125, 0.125),
    "repetition_penalty": (1.25, 1.25),
    "presence_penalty": (0.5, 0.5),
    "frequency_penalty": (-0.5, -0.5),
    "logit_bias": ({"5": 1.5}, ((5, 1.5),)),
    "seed": (11, 11),
    "stop": (["a", "b"], ("a", "b")),
    "stop_token_ids": ([3, 4], (3, 4)),
    "ignore_eos": (True, True),
    "top_logprobs": (3, 3),
    "num_choices": (2, 2),
    "priority": ("high", 1),
    "timeout_ms": (5000, 5000),
    "cache": ("use", "use"),
    "idempotency_key": ("k", "k"),
    "model": ("m", "m"),
    "stream": (True, True),
}
SAMPLING_NAMES = {known.name for known in SAMPLING}


def named(known: RequestField, place: Place) -> tuple[str, ...]:
    names = known.names.get(place, ())
    return names if place is not Place.GENERATE else (*names, *map(camel_case, names))


def parse(place: Place, body: Mapping[str, Any]) -> tuple[GenerationRequest, IgnoredFields]:
    ignored = IgnoredFields()
    whole = {**BASE[place], **body}
    if place is Place.CHAT:
        return parse_chat(whole, ignored).request, ignored
    if place is Place.COMPLETIONS:
        return parse_completion(whole, 8, ignored).requests[0], ignored
    return parse_generate(whole, ignored), ignored


def said(request: GenerationRequest, name: str) -> Any:
    if name == "stream":
        return request.is_streamed
    return getattr(request.sampling if name in SAMPLING_NAMES else request, name)


def over_grpc(known: RequestField) -> GenerationRequest:
    value = VALUES[known.name][0]
    request = inference_pb2.GenerateRequest(text="hi")
    group, _, name = known.proto[0].partition(".")
    if known.name == "logit_bias":
        request.options.sampling.logit_bias[5] = 1.5
    elif known.kind is Kind.WORD:
        enum = {"priority": types_pb2.PRIORITY_HIGH, "cache": types_pb2.CACHE_MODE_USE}
        setattr(request.options, name, enum[name])
    else:
        holder: Any = {
            "SamplingParams": request.options.sampling,
            "RequestOptions": request.options,
            "GenerateRequest": request,
        }[group]
        if isinstance(value, list):
            getattr(holder, name).extend(value)
        else:
            setattr(holder, name, value)
    return servicer._generate_from_proto(request)


def test_a_value_is_known_for_every_supported_field() -> None:
    bodies = {known.name for known in FIELDS if not known.names.keys().isdisjoint(GENERATING)}
    assert bodies - VALUES.keys() == {"messages", "prompt", "stream_options", "logprobs"}


SUPPORTED = [
    pytest.param(known, place, name, id=f"{place}-{name}")
    for known in FIELDS
    if known.name in VALUES
    for place in GENERATING
    for name in named(known, place)
]


@pytest.mark.parametrize(("known", "place", "name"), SUPPORTED)
def test_supported_field_changes_the_request(known: RequestField, place: Place, name: str) -> None:
    value, expected = VALUES[known.name]
    extra = {"logprobs": True} if name == "top_logprobs" else {}
    without, _ = parse(place, extra)
    request, ignored = parse(place, {name: value, **extra})

    assert said(request, known.name) == expected != said(without, known.name)
    assert request.names[known.name] == name
    assert not ignored


@pytest.mark.parametrize(
    "known",
    [each for each in FIELDS if each.name in VALUES and each.proto],
    ids=lambda each: each.name,
)
def test_both_edges_say_the_same(known: RequestField) -> None:
    place = Place.COMPLETIONS
    http, _ = parse(place, {known.names[place][0]: VALUES[known.name][0]})

    grpc = over_grpc(known)

    assert said(grpc, known.name) == said(http, known.name) == VALUES[known.name][1]


@pytest.mark.parametrize(("known", "place", "name"), SUPPORTED)
def test_null_is_as_absent(known: RequestField, place: Place, name: str) -> None:
    request, ignored = parse(place, {name: None})

    assert request == parse(place, {})[0]
    assert not ignored


def asking(field: ForeignField) -> Any:
    """A value that asks for something."""
    accepted = (*field.nothing, *field.tolerated)
    return next(each for each in (["x"], "x", 7, True, False) if not is_among(each, accepted))


ROUTES = [
    pytest.param(field, place, id=f"{place}-{field.name}")
    for field in FOREIGN
    for place in GENERATING
    if place in field.places
]


@pytest.mark.parametrize(("field", "place"), ROUTES)
def test_foreign_field_is_refused_by_name_or_told(field: ForeignField, place: Place) -> None:
    body = {field.name: asking(field)}
    if field.is_harmless:
        request, ignored = parse(place, body)
        assert request == parse(place, {})[0]
        assert (ignored.header_text(), ignored.num_harmless) == (field.name, 1)
        return
    with pytest.raises(InvalidRequest) as caught:
        parse(place, body)
    assert caught.value.field == field.name
    assert caught.value.metadata["code"] == "unsupported_parameter"
    assert field.name in caught.value.message
    assert (field.say or field.feature) in caught.value.message
    assert "did you mean" not in caught.value.message


@pytest.mark.parametrize(("field", "place"), ROUTES)
def test_foreign_field_that_asks_for_nothing_is_taken(field: ForeignField, place: Place) -> None:
    plain, _ = parse(place, {})
    for value in (None, *field.nothing):
        request, ignored = parse(place, {field.name: value})
        assert request == plain
        assert not ignored
    for value in field.tolerated:
        request, ignored = parse(place, {field.name: value})
        assert request == plain
        assert ignored.header_text() == field.name


@pytest.mark.parametrize(("field", "place"), ROUTES)
def test_foreign_field_is_known_in_camel_case_too(field: ForeignField, place: Place) -> None:
    name = camel_case(field.name.rstrip("_"))
    if field.name != snake_case(name):
        return
    if field.is_harmless:
        assert parse(place, {name: asking(field)})[1].header_text() == name
        return
    with pytest.raises(InvalidRequest) as caught:
        parse(place, {name: asking(field)})
    assert caught.value.field == name


ELSEWHERE = [
    pytest.param(place, name, id=f"{place}-{name}")
    for place in GENERATING
    for name in TABLES[place].elsewhere
]


@pytest.mark.parametrize(("place", "name"), ELSEWHERE)
def test_field_of_another_route_is_refused_with_the_way_there(place: Place, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(place, {name: ["x"]})
    assert caught.value.field == name
    assert place in caught.value.message
    assert any(each in caught.value.message for each in ("say ", "/v1/", "/generate"))
    values: tuple[Any, ...] = (None, [], "", {}, False)
    for nothing in values:
        assert parse(place, {name: nothing})[0] == parse(place, {})[0]


@pytest.mark.parametrize(
    ("place", "body", "words"),
    [
        (Place.CHAT, {"prompt": "x"}, ["/v1/completions", "takes messages"]),
        (Place.COMPLETIONS, {"messages": HI}, ["/v1/chat/completions", "takes prompt"]),
        (Place.GENERATE, {"messages": HI}, ["/v1/chat/completions", "takes prompt"]),
        (Place.COMPLETIONS, {"top_logprobs": 2}, ["say logprobs"]),
        (Place.CHAT, {"num_choices": 2}, ["say n"]),
        (Place.GENERATE, {"n": 2}, ["/v1/completions"]),
        (Place.GENERATE, {"logprobs": 2}, ["/v1/completions"]),
    ],
)
def test_wrong_route_names_the_right_one(
    place: Place, body: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(place, body)
    assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize(("known", "place", "name"), SUPPORTED)
def test_slip_of_a_field_is_refused_with_the_right_name(
    known: RequestField, place: Place, name: str
) -> None:
    slip = name[:-2] + name[-1]
    if len(name) < 6 or slip in TABLES[place].ours or TABLES[place].other(slip):
        return
    with pytest.raises(InvalidRequest, match=f"there is no field {slip}; did you mean ") as caught:
        parse(place, {slip: 1})
    assert caught.value.field == slip


@pytest.mark.parametrize("name", ["foo", "x" * 500, "モデル", "a\r\nset-cookie: b", ""])
@pytest.mark.parametrize("place", GENERATING)
def test_unknown_field_is_ignored_and_told(place: Place, name: str) -> None:
    request, ignored = parse(place, {name: 1})

    assert request == parse(place, {})[0]
    assert (ignored.num_harmless, ignored.num_unknown) == (0, 1)
    assert ignored.header_text().isascii()
    assert "\n" not in ignored.header_text()


def test_many_unknown_fields_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def near(name: str, names: object) -> list[str]:
        compared.append(name)
        return []

    monkeypatch.setattr(table, "_near", near)
    body = {f"zz{number}": 1 for number in range(100_000)}

    _, ignored = parse(Place.CHAT, body)

    assert ignored.num_unknown == 100_000
    assert len(compared) == MAX_NAMES


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(case=st.sampled_from(SUPPORTED), value=JSON)
def test_any_value_is_read_or_refused_by_the_name_that_was_sent(case: Any, value: Any) -> None:
    _, place, name = case.values
    extra = {"logprobs": True} if name == "top_logprobs" else {}
    try:
        parse(place, {name: value, **extra})
    except InvalidRequest as error:
        assert error.field == name
        assert error.message.startswith(name)
        assert len(error.message) < 500


@given(value=st.integers(-(2**63), 2**64 - 1))
def test_a_seed_is_64_bits_signed_or_not(value: int) -> None:
    request, _ = parse(Place.CHAT, {"seed": value})
    assert request.sampling.seed == value
    assert request.sampling.spec(value).seed == value % 2**64
    twin, _ = parse(Place.CHAT, {"seed": value % 2**64})
    assert request.sampling.canonical() == twin.sampling.canonical()


@given(value=st.integers(1, 2**31 - 1), spelling=st.sampled_from([int, float, lambda v: f"{v}.0"]))
def test_an_integer_may_be_written_as_json_writes_numbers(
    value: int, spelling: Callable[[int], Any]
) -> None:
    body = json.loads(f'{{"max_tokens": {spelling(value)}}}')
    request, _ = parse(Place.COMPLETIONS, body)
    assert request.sampling.max_tokens == value
    assert type(request.sampling.max_tokens) is int


@pytest.mark.parametrize("text", ["8.0", "8", "8e0", "0.8e1", "80e-1"])
@pytest.mark.parametrize("name", ["max_tokens", "top_k", "seed", "timeout_ms", "n", "min_tokens"])
def test_one_number_has_many_spellings(name: str, text: str) -> None:
    place = Place.COMPLETIONS
    known = TABLES[place].ours[name]
    value = said(parse(place, json.loads(f'{{"{name}": {text}}}'))[0], known.name)
    assert (value, type(value)) == (8, int)


@pytest.mark.parametrize("value", ["8", True, 8.5, [8], {"a": 8}])
@pytest.mark.parametrize("name", ["max_tokens", "top_k", "seed", "timeout_ms", "n", "logprobs"])
def test_what_is_no_integer_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} is .*an integer"):
        parse(Place.COMPLETIONS, {name: value})


def test_lists_of_integers_take_every_spelling() -> None:
    request, _ = parse(Place.COMPLETIONS, {"prompt": [1.0, 2], "stop_token_ids": [3e0]})
    assert (request.token_ids, request.sampling.stop_token_ids) == ((1, 2), (3,))


@pytest.mark.parametrize("place", GENERATING)
def test_minus_one_is_off_for_top_k_and_no_length(place: Place) -> None:
    assert parse(place, {"top_k": -1})[0].sampling.top_k == 0
    assert parse(place, {})[0].sampling.top_k is None
    with pytest.raises(InvalidRequest, match="max_tokens is -1; .* leave it out"):
        parse(place, {"max_tokens": -1})


def test_best_of_asks_for_nothing_if_it_is_n() -> None:
    assert parse(Place.COMPLETIONS, {"n": 3, "best_of": 3})[0].sampling.num_choices == 3
    assert parse(Place.COMPLETIONS, {"best_of": 1})[0].sampling.num_choices == 1
    with pytest.raises(InvalidRequest, match="best_of"):
        parse(Place.COMPLETIONS, {"n": 3, "best_of": 2})


def test_two_names_of_a_field_must_agree() -> None:
    both = {"max_tokens": 3, "max_completion_tokens": 3}
    assert parse(Place.CHAT, both)[0].sampling.max_tokens == 3
    with pytest.raises(InvalidRequest, match="max_tokens is 3 and max_completion_tokens is 4"):
        parse(Place.CHAT, {"max_tokens": 3, "max_completion_tokens": 4})


def test_max_tokens_over_min_tokens_names_both_as_sent() -> None:
    with pytest.raises(InvalidRequest, match="minTokens 5 is over maxCompletionTokens 4"):
        parse(Place.GENERATE, {"minTokens": 5, "maxCompletionTokens": 4})


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"include_usage": None}])
def test_stream_options_that_ask_for_nothing_need_no_stream(options: dict[str, Any]) -> None:
    assert parse(Place.CHAT, {"stream_options": options})[0] == parse(Place.CHAT, {})[0]


async def test_ignored_fields_are_told_in_a_header_and_counted(gateway: Harness) -> None:
    body = {"messages": HI, "user": "u", "foo": 1, "bar": None, "echo": False}
    async with gateway.client() as client:
        reply = await client.post("/v1/chat/completions", json=body)
        streamed = await client.post("/v1/chat/completions", json={**body, "stream": True})
        plain = await client.post("/v1/chat/completions", json={"messages": HI})
        refused = await client.post("/v1/chat/completions", json={**body, "temperature": 9})

    assert reply.headers["millrace-ignored-fields"] == "user, foo"
    assert streamed.headers["millrace-ignored-fields"] == "user, foo"
    assert "millrace-ignored-fields" not in plain.headers
    assert refused.headers["millrace-ignored-fields"] == "user, foo"
    for kind in ("harmless", "unknown"):
        sample = ("millrace_request_ignored_fields_total", {"kind": kind})
        assert gateway.registry.get_sample_value(*sample) == 3


async def test_fields_inside_are_told_with_their_place(gateway: Harness) -> None:
    part = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": [part], "weight": 1, "color": "red"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": None},
        {"role": "user", "content": "b"},
    ]
    options = {"include_usage": True, "include_obfuscation": True, "future": 1}
    body = {"messages": messages, "stream": True, "stream_options": options}
    async with gateway.client() as client:
        reply = await client.post("/v1/chat/completions", json=body)

    assert reply.status_code == 200
    assert reply.headers["millrace-ignored-fields"].split(", ") == [
        "messages[0].weight",
        "messages[0].color",
        "messages[0].content[0].cache_control",
        "messages[1].reasoning_content",
        "stream_options.include_obfuscation",
        "stream_options.future",
    ]


NESTED = [
    pytest.param(field, field.places[0], id=f"{field.places[0]}-{field.name}")
    for field in FOREIGN
    if field.places[0] in (Place.MESSAGE, Place.PART, Place.STREAM_OPTIONS)
]


def inside(place: Place, name: str, value: Any) -> dict[str, Any]:
    if place is Place.STREAM_OPTIONS:
        return {"stream": True, "stream_options": {name: value}}
    if place is Place.PART:
        return {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a", name: value}]}]
        }
    return {"messages": [{"role": "user", "content": "a", name: value}]}


@pytest.mark.parametrize(("field", "place"), NESTED)
def test_foreign_field_inside_is_refused_or_told(field: ForeignField, place: Place) -> None:
    body = inside(place, field.name, asking(field))
    if field.is_harmless:
        assert parse(Place.CHAT, body)[1].header_text().endswith(field.name)
    else:
        with pytest.raises(InvalidRequest, match=field.name) as caught:
            parse(Place.CHAT, body)
        assert caught.value.metadata["code"] == "unsupported_parameter"
    for nothing in (None, *field.nothing):
        assert not parse(Place.CHAT, inside(place, field.name, nothing))[1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"requests": [{"prompt": "a"}], "temperature": 0}, ["temperature", "each entry"]),
        ({"requests": [{"prompt": "a"}], "model": "m"}, ["model", "each entry"]),
        ({"requests": [{"prompt": "a"}], "stream": True}, ["a batch is not streamed"]),
        ({"prompts": ["a"]}, ["say requests"]),
        ({"request": [{"prompt": "a"}]}, ["did you mean requests"]),
        ({"requests": [{"prompt": "a"}], "grammar": "g"}, ["constrained output"]),
    ],
)
async def test_batch_refuses_what_would_change_its_answers(
    gateway: Harness, body: dict[str, Any], words: list[str]
) -> None:
    async with gateway.client() as client:
        reply = await client.post("/generate/batch", json=body)
    message = reply.json()["error"]["message"]
    assert reply.status_code == 400
    assert all(word in message for word in words), message


async def test_batch_tells_what_it_ignores(gateway: Harness) -> None:
    requests = [
        {"prompt": "a", "foo": 1},
        {"prompt": "b", "user": "u"},
        {"prompt": "c", "tempratur": 1},
    ]
    async with gateway.client() as client:
        reply = await client.post("/generate/batch", json={"requests": requests, "bar": 1})
    assert reply.headers["millrace-ignored-fields"] == "bar, foo, user"
    results = reply.json()["results"]
    assert [set(each) & {"text", "error"} for each in results] == [{"text"}, {"text"}, {"error"}]
