"""The name tables agree with each other."""

from __future__ import annotations

import pytest

from millrace.telemetry import names


def _constants(prefix: str) -> dict[str, str]:
    return {name: value for name, value in vars(names).items() if name.startswith(prefix)}


@pytest.mark.parametrize("prefix", ["SPAN_", "ATTR_", "METRIC_", "EVENT_"])
def test_no_two_constants_share_a_name(prefix: str) -> None:
    values = list(_constants(prefix).values())

    assert len(values) > 5
    assert len(values) == len(set(values))


def test_every_edge_names_known_services_and_spans() -> None:
    spans = set(_constants("SPAN_").values())
    for edge in (*names.SERVICE_EDGES, *names.CACHE_EDGES, *names.STEP_EDGES):
        assert {edge.parent_service, edge.child_service} <= set(names.SERVICES)
        assert {edge.parent_span, edge.child_span} <= spans


def test_the_edges_reach_all_five_services() -> None:
    edges = (*names.SERVICE_EDGES, *names.CACHE_EDGES)

    assert {edge.child_service for edge in edges} == set(names.SERVICES)


def test_request_span_template_matches_requests_alone() -> None:
    assert names.matches_span(names.SPAN_REQUEST, names.request_span_name("chat", "a/b.c"))
    assert names.matches_span(names.SPAN_REQUEST, "text_completion smollm2")
    assert not names.matches_span(names.SPAN_REQUEST, "send mr.v1.req")
    assert not names.matches_span(names.SPAN_REQUEST, "chat")
    assert not names.matches_span(names.SPAN_STEP, "steps")


def test_ours_are_in_our_namespace() -> None:
    foreign = ("gen_ai.", "rpc.", "messaging.", "http.", "error.")
    for value in _constants("ATTR_").values():
        assert value.startswith(("millrace.", *foreign))
    for value in _constants("METRIC_").values():
        assert value.startswith("millrace_")
