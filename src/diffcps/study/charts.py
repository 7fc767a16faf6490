"""Pictures of a study as SVG inside of a page: from numbers, without a program in the browser.

Colours are classes of the page's style sheet (`c0` to `c5`, dashes `d0` to `d3`), so that it can be light or dark; all
marks of a row have the class `rowN`, by which the page hides them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from diffcps.evaluation.statistics import Estimate
from diffcps.plots import BLUE, GREEN, ORANGE, PURPLE, RED, TEAL

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, TEAL)
DASHES = ("none", "7 4", "2 3", "9 3 2 3")
"""A row takes the next dash where the colours begin again."""

WIDTH, HEIGHT = 400.0, 270.0
"""Units of a chart; a phone is about as wide, so that its texts keep their size."""
LEFT, RIGHT, TOP, BOTTOM = 48.0, 16.0, 26.0, 34.0
"""Margins of the axes."""
SIDE = 12.0
"""Margins of an interval chart."""
CHARACTERS = 40
"""Of a label in a line of an interval chart, beside its numbers."""
LINE_HEIGHT = 15.0
BAR_HEIGHT = 24.0
"""With the space to the next row."""
FEW = 12
"""Up to so many points of a line are marked."""


class Style(NamedTuple):
    """How a row looks in all charts, by its number."""

    number: int

    @property
    def classes(self) -> str:
        """For the style sheet."""
        dash = self.number // len(COLOURS) % len(DASHES)
        return f"row{self.number} c{self.number % len(COLOURS)} d{dash}"


class Line(NamedTuple):
    """A line with a band."""

    label: str
    style: Style
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None
    high: Sequence[float] | None


class Level(NamedTuple):
    """A dashed line across a chart; in ink where it belongs to no row."""

    label: str
    value: float
    style: Style | None


class Axes(NamedTuple):
    """What the numbers of a chart are."""

    x_label: str
    y_label: str
    is_logarithmic: bool = False
    """The vertical axis."""


class Bar(NamedTuple):
    """A row of an interval chart."""

    label: str
    style: Style
    estimate: Estimate
    digits: int


def lighter(colour: str) -> str:
    """A colour of the palette for a dark ground: a quarter of the way to white."""
    channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(channel + 0.25 * (255 - channel)):02x}" for channel in channels)


def line_chart(
    name: str, title: str, description: str, axes: Axes, lines: Sequence[Line], levels: Sequence[Level] = ()
) -> str:
    """Lines with bands and levels over a common horizontal axis from 0. `name` is unique in the page."""
    values = [
        *(value for line in lines for of_line in (line.y, line.low or (), line.high or ()) for value in of_line),
        *(level.value for level in levels),
    ]
    if axes.is_logarithmic:
        values = [value for value in values if value > 0]
    y = _Scale.over(values, HEIGHT - BOTTOM, TOP, axes.is_logarithmic)
    x = _Scale.over([0.0, *(value for line in lines for value in line.x)], LEFT, WIDTH - RIGHT, tight=True)
    parts = [*_horizontal_grid(y), *_x_axis(x, HEIGHT - BOTTOM)]
    parts += [
        _text(LEFT, TOP - 12, axes.y_label, "start"),
        _text(WIDTH - RIGHT, HEIGHT - 3, axes.x_label, "end"),
    ]
    for level in levels:
        classes = "level" if level.style is None else f"level of-row {level.style.classes}"
        path = f'<path d="M{LEFT:g} {y.place(level.value):.1f}H{WIDTH - RIGHT:g}"/>'
        parts.append(f'<g class="{classes}"><title>{escape(level.label)}</title>{path}</g>')
    parts += [_line(line, x, y) for line in lines]
    return _svg(name, title, description, HEIGHT, parts)


def interval_chart(
    name: str, title: str, description: str, x_label: str, bars: Sequence[Bar], reference: float | None = None
) -> str:
    """For each row its label and numbers, and below them a point on its interval. `reference` is a dashed line."""
    ends = [value for bar in bars for value in (bar.estimate.value, *(bar.estimate.interval or ()))]
    scale = _Scale.over([*ends, *([] if reference is None else [reference])], SIDE, WIDTH - SIDE)
    rows: list[str] = []
    at = 4.0
    for bar in bars:
        labels = textwrap.wrap(bar.label, CHARACTERS) or [""]
        rows.append(_bar(bar, labels, at, scale))
        at += LINE_HEIGHT * len(labels) + BAR_HEIGHT
    bottom = at + 2
    parts = [f'<path class="grid" d="M{scale.place(tick):.1f} 4V{bottom:.1f}"/>' for tick in scale.ticks]
    if reference is not None:
        parts.append(f'<path class="level" d="M{scale.place(reference):.1f} 4V{bottom:.1f}"/>')
    parts += rows
    parts += [*_x_axis(scale, bottom), _text(WIDTH - SIDE, bottom + BOTTOM - 3, x_label, "end")]
    return _svg(name, title, description, bottom + BOTTOM, parts)


def swatch(style: Style) -> str:
    """A piece of a row's line, for a legend."""
    return (
        f'<svg class="swatch {style.classes}" viewBox="0 0 30 10" aria-hidden="true">'
        '<path class="line" d="M0 5H30"/></svg>'
    )


def interval_text(estimate: Estimate, digits: int) -> str:
    """A number and between which it lies: `61.2 [58.0, 64.1]`."""
    value = f"{estimate.value:.{digits}f}"
    if estimate.interval is None:
        return value
    return f"{value} [{estimate.interval.low:.{digits}f}, {estimate.interval.high:.{digits}f}]"


# --- Scales ---


class _Scale(NamedTuple):
    """From numbers to places."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    is_logarithmic: bool

    @classmethod
    def over(
        cls, values: Sequence[float], start: float, end: float, is_logarithmic: bool = False, tight: bool = False
    ) -> _Scale:
        """One that shows all values, with some room at both ends unless it is `tight`."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        if is_logarithmic:
            low, high = math.log10(low), math.log10(high)
        room = 0.0 if tight else 0.05 * (high - low)
        if high - low < 1e-9 * max(1.0, abs(high)):
            room = 0.5 if is_logarithmic else 0.5 * abs(high) or 0.5
        low, high = low - room, high + room
        ticks = _logarithmic_ticks(low, high) if is_logarithmic else _ticks(low, high)
        return cls(low, high, start, end, ticks, is_logarithmic)

    def place(self, value: float) -> float:
        """Where a number stands; at the lowest end what a logarithm cannot show."""
        if self.is_logarithmic:
            value = math.log10(value) if value > 0 else self.low
        share = (max(value, self.low) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Round numbers between two, at most so many."""
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def _logarithmic_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten, and their doubles and fives where these are few; round numbers where none of them is inside."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [tick for tick in found if low <= math.log10(tick) <= high]
        if len(found) > 2:
            return tuple(found[:: math.ceil(len(found) / 7)])
    return _ticks(10**low, 10**high, 4)


def _tick_texts(scale: _Scale) -> list[str]:
    """As many digits as tell the ticks apart; 1.5k and 2M for large numbers."""
    largest = max(map(abs, scale.ticks), default=0.0)
    size, unit = next(((size, unit) for size, unit in ((1e6, "M"), (1e3, "k")) if largest >= size), (1.0, ""))
    if scale.is_logarithmic or largest < 1e-3:
        return [f"{tick / size:.4g}{unit}" for tick in scale.ticks]
    steps = [after - before for before, after in pairwise(scale.ticks)]
    digits = max(0, math.ceil(-math.log10(min(steps, default=1.0) / size) - 1e-6))
    return [f"{tick / size:.{digits}f}{unit}" if abs(tick) > 1e-9 * largest else "0" for tick in scale.ticks]


# --- Marks ---


def _svg(name: str, title: str, description: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str, classes: str = "") -> str:
    which = f' class="{classes}"' if classes else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{which}>{escape(text)}</text>'


def _horizontal_grid(y: _Scale) -> list[str]:
    parts: list[str] = []
    for tick, text in zip(y.ticks, _tick_texts(y), strict=True):
        at = y.place(tick)
        parts.append(f'<path class="grid" d="M{LEFT:g} {at:.1f}H{WIDTH - RIGHT:g}"/>')
        parts.append(_text(LEFT - 5, at + 4, text, "end"))
    return parts


def _x_axis(x: _Scale, at: float) -> list[str]:
    parts = [f'<path class="axis" d="M{x.start:.1f} {at:.1f}H{x.end:.1f}"/>']
    for tick, text in zip(x.ticks, _tick_texts(x), strict=True):
        place = x.place(tick)
        parts.append(f'<path class="axis" d="M{place:.1f} {at:.1f}v4"/>')
        parts.append(_text(place, at + 16, text, "middle"))
    return parts


def _points(xs: Sequence[float], ys: Sequence[float], x: _Scale, y: _Scale) -> list[tuple[float, float]]:
    return [(x.place(a), y.place(b)) for a, b in zip(xs, ys, strict=True)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _line(line: Line, x: _Scale, y: _Scale) -> str:
    points = _points(line.x, line.y, x, y)
    parts = [f'<g class="{line.style.classes}"><title>{escape(line.label)}</title>']
    if line.low is not None and line.high is not None and len(points) > 1:
        around = [*_points(line.x, line.high, x, y), *reversed(_points(line.x, line.low, x, y))]
        parts.append(f'<path class="band" d="{_path(around)}Z"/>')
    parts.append(f'<path class="line" d="{_path(points)}"/>')
    if len(points) <= FEW:
        parts += [f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="2.2"/>' for a, b in points]
    return "".join([*parts, "</g>"])


def _bar(bar: Bar, labels: Sequence[str], top: float, scale: _Scale) -> str:
    estimate, base = bar.estimate, top + LINE_HEIGHT - 3
    parts = [_text(SIDE, base + LINE_HEIGHT * number, text, "start", "over") for number, text in enumerate(labels)]
    parts.append(_text(WIDTH - SIDE, base, interval_text(estimate, bar.digits), "end", "over"))
    y = top + LINE_HEIGHT * len(labels) + BAR_HEIGHT / 3
    if estimate.interval is not None:
        low, high = (scale.place(end) for end in estimate.interval)
        parts.append(f'<path class="interval" d="M{low:.1f} {y:.1f}H{high:.1f}"/>')
    parts.append(f'<circle class="dot" cx="{scale.place(estimate.value):.1f}" cy="{y:.1f}" r="4"/>')
    return f'<g class="c{bar.style.number % len(COLOURS)}">{"".join(parts)}</g>'
