"""Line plots as SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 76, 190, 48, 56
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#bf8700", "#0a7d8c", "#57606a", "#bc4c00")
DASHES = ("", "6 4", "2 3")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from `low` to `high`, linear or logarithmic, with the values marked on it."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 0.5 if high == low else (value - low) / (high - low)


def linear_axis(label: str, values: Sequence[float]) -> Axis:
    """From 0 to a round number above all values."""
    top = max(values, default=0.0) or 1.0
    unit = 10.0 ** math.floor(math.log10(top))
    step = next(unit * part for part in (0.2, 0.5, 1, 2) if top / (unit * part) <= 6)
    count = math.ceil(top / step)
    return Axis(label, 0.0, count * step, tuple(step * index for index in range(count + 1)))


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """From 1, 2 or 5 times a power of ten below all values to one above. All must be above 0."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    marks = [part * 10.0**power for power in range(first, last + 1) for part in (1, 2, 5)]
    low = max(mark for mark in marks if mark <= min(values))
    high = min(mark for mark in marks if mark >= max(values))
    ticks = tuple(mark for mark in marks if low <= mark <= high)
    return Axis(label, low, high, ticks, is_log=True)


def points_axis(label: str, values: Sequence[float]) -> Axis:
    """Logarithmic, marked at the values themselves."""
    ticks = tuple(sorted(set(values)))
    return Axis(label, ticks[0], ticks[-1], ticks, is_log=True)


def line_plot(title: str, x: Axis, y: Axis, lines: Mapping[str, Points], note: str = "") -> str:
    """A whole SVG document, `note` in small letters below its title.

    Lines that share their name up to a comma share a colour.
    """
    body = [_text(LEFT, 22, title, "start", 16), *_grid(x, y)]
    if note:
        body.append(_text(LEFT, 38, note, "start", 9))
    families: list[str] = []
    dashes: dict[str, int] = {}
    for index, (name, points) in enumerate(lines.items()):
        family = name.partition(",")[0]
        if family not in families:
            families.append(family)
        dash = dashes[family] = dashes.get(family, -1) + 1
        colour = COLOURS[families.index(family) % len(COLOURS)]
        style = (
            f'stroke="{colour}" stroke-width="2" stroke-dasharray="{DASHES[dash % len(DASHES)]}"'
        )
        spots = [_spot(x, y, point) for point in points]
        body += [
            f'<circle cx="{at_x}" cy="{at_y}" r="3.5" fill="{colour}"/>' for at_x, at_y in spots
        ]
        body += _line(name, spots, style, index)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _spot(x: Axis, y: Axis, point: tuple[float, float]) -> tuple[float, float]:
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return round(LEFT + wide * x.place(point[0]), 1), round(TOP + high * (1 - y.place(point[1])), 1)


def _grid(x: Axis, y: Axis) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    body = []
    for tick in y.ticks:
        _, at = _spot(x, y, (x.low, tick))
        body.append(f'<path d="M{LEFT} {at}H{right}" stroke="#d8dee4"/>')
        body.append(_text(LEFT - 8, at + 4, f"{tick:g}", "end"))
    for tick in x.ticks:
        at, _ = _spot(x, y, (tick, y.low))
        body.append(f'<path d="M{at} {TOP}V{bottom}" stroke="#d8dee4"/>')
        body.append(_text(at, bottom + 18, f"{tick:g}", "middle"))
    body.append(_text((LEFT + right) / 2, HEIGHT - 14, x.label, "middle"))
    middle = (TOP + bottom) / 2
    turned = _text(18, middle, y.label, "middle")
    return [*body, turned.replace("<text", f'<text transform="rotate(-90 18 {middle})"')]


def _line(name: str, spots: Points, style: str, index: int) -> list[str]:
    path = "L".join(f"{at_x} {at_y}" for at_x, at_y in spots)
    at, key = TOP + 8 + 22 * index, WIDTH - RIGHT + 16
    line = [f'<path d="M{path}" fill="none" {style}/>'] if spots else []
    mark = f'<path d="M{key} {at}h26" fill="none" {style}/>'
    return [*line, mark, _text(key + 34, at + 4, name, "start")]


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="#24292f" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
