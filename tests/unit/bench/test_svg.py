"""Plots: whole documents, points where they belong."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from scripts.bench.plots import engine_plot, latency_plot, throughput_plot
from scripts.bench.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    line_plot,
    linear_axis,
    log_axis,
    points_axis,
)

SVG = "{http://www.w3.org/2000/svg}"


def spots(text: str) -> list[tuple[float, float]]:
    circles = ElementTree.fromstring(text).iter(f"{SVG}circle")
    return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in circles]


def test_corners_of_the_scales_are_the_corners_of_the_frame() -> None:
    x, y = points_axis("streams", [1, 32]), linear_axis("tokens/s", [400.0])
    text = line_plot("title", x, y, {"one": [(1, 0.0), (32, y.high)]})
    assert spots(text) == [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]


def test_doubling_is_the_same_distance_everywhere_on_a_logarithmic_scale() -> None:
    axis = log_axis("ms", [12.0, 900.0])
    assert (axis.low, axis.high) == (10.0, 1000.0)
    assert axis.ticks == (10, 20, 50, 100, 200, 500, 1000)
    assert axis.place(20) == pytest.approx(axis.place(200) - axis.place(100))


@pytest.mark.parametrize("top", [0.07, 1.0, 6.1, 99.0, 100.0, 1234.0])
def test_linear_scale_holds_all_values_with_few_round_marks(top: float) -> None:
    axis = linear_axis("", [top / 3, top])
    assert axis.low == 0 and axis.high >= top
    assert 2 <= len(axis.ticks) <= 8
    assert axis.ticks[-1] == pytest.approx(axis.high)


def test_single_point_has_its_place() -> None:
    x, y = points_axis("rows", [8]), linear_axis("", [0.0])
    ((at_x, at_y),) = spots(line_plot("title", x, y, {"one": [(8, 0.0)]}))
    assert LEFT < at_x < WIDTH - RIGHT and at_y == HEIGHT - BOTTOM


def test_text_is_escaped() -> None:
    x, y = points_axis("a < b", [1, 2]), linear_axis("y", [1.0])
    text = line_plot("R & D", x, y, {"<line>": [(1, 1.0)]})
    shown = [element.text for element in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert {"R & D", "a < b", "<line>"} <= set(shown)


def test_lines_of_one_family_share_a_colour_and_differ_in_dashes() -> None:
    x, y = points_axis("x", [1, 2]), linear_axis("y", [1.0])
    lines = {"TTFT, gRPC": [(1, 1.0)], "TTFT, HTTP": [(2, 1.0)], "ITL, gRPC": [(2, 0.5)]}
    root = ElementTree.fromstring(line_plot("", x, y, lines))
    colours = [one.attrib["fill"] for one in root.iter(f"{SVG}circle")]
    assert colours[0] == colours[1] != colours[2]
    drawn = [one.attrib for one in root.iter(f"{SVG}path") if "stroke-dasharray" in one.attrib]
    # Each line is drawn twice: in the frame, and as a mark beside its name.
    assert [one["stroke"] for one in drawn[::2]] == colours
    assert drawn[0]["stroke-dasharray"] != drawn[2]["stroke-dasharray"]


def load(protocol: str, streams: int, tokens_per_s: float) -> dict[str, object]:
    times = {
        "ttft_ms_p50": 80.0 * streams,
        "ttft_ms_p99": 80.0 * streams,
        "itl_ms_p50": 12.0,
        "itl_ms_p99": 40.0,
    }
    return {"protocol": protocol, "streams": streams, "tokens_per_s": tokens_per_s, **times}


def test_report_becomes_plots_with_a_line_for_each_wire_and_kind_of_weights() -> None:
    loads = [load(wire, streams, 40.0 * streams) for wire in ("grpc", "http") for streams in (1, 8)]
    assert len(spots(throughput_plot(loads))) == 4
    latency = latency_plot(loads)
    assert len(spots(latency)) == 16
    for name in ("TTFT p50, gRPC", "TTFT p99, HTTP", "ITL p99, HTTP"):
        assert re.search(f">{name}<", latency)
    decode = {"what": "decode", "weights": "int8", "context": 300}
    steps = [{**decode, "rows": rows, "tokens_per_s": 100.0 * rows} for rows in (1, 8, 32)]
    other = {**decode, "context": 2048, "rows": 8, "tokens_per_s": 50.0}
    assert len(spots(engine_plot([*steps, other]))) == 3
