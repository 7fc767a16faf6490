"""The course of a run as one picture."""

# JAX and matplotlib leave some of their types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffcps.algorithms import ALGORITHMS
from diffcps.evaluation.scores import mean_and_std_over_members
from diffcps.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, TEAL, save_figure, tidy
from diffcps.records.folder import RunFolder
from diffcps.records.record import Evaluation, Measurement, Reference, RunRecord
from diffcps.tasks.references import normalised_score
from diffcps.training.members import Member
from diffcps.types import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, TEAL)
"""One per combination of swept values; with more combinations the colours come from a scale."""
STROKES = ((":", "dotted"), ("-.", "dash-dotted"), ((0, (1, 4)), "sparsely dotted"))
"""Of the scores by further rules to act by, and what they are called."""
LEGEND_COLUMNS = 5
FEW = 40
"""Up to so many points of a line are marked."""


class Point(NamedTuple):
    """One number of one member."""

    update: int
    member: Member
    value: float


def save_curves(folder: RunFolder, path: Path) -> None:
    """Draws the logs of a run into the PNG file `path`, which is replaced as a whole.

    Raises `UserError` where it cannot be written.
    """
    record = folder.read_record()
    members = record.members
    figure = curves_figure(record, folder.read_measurements(members), folder.read_evaluations(members))
    save_figure(figure, path, within_run=True)


def curves_figure(record: RunRecord, measurements: Sequence[Measurement], evaluations: Sequence[Evaluation]) -> Figure:
    """Scores and the method's main metrics over updates, one under the other where there are any.

    Seeds are thin lines; their mean, as long as all of them are there, a thick one with a band of one standard
    deviation; each combination of swept values has its colour.
    """
    from matplotlib.figure import Figure

    scores = [Point(row.update, row.member, row.score) for row in evaluations if row.score is not None]
    metrics = [
        (metric, points)
        for name, metric in ALGORITHMS[record.algorithm].METRICS.items()
        if metric.symbol and (points := _points(measurements, name))
    ]
    colours = _colours(record, [row.member for row in measurements] or [row.member for row in evaluations])
    columns = len(metrics) if len(metrics) < 4 else 2
    heights = [3.6] * bool(scores) + [2.7] * (-(-len(metrics) // columns) if metrics else 0)
    labels = _legend_labels(record, colours)
    legend_columns = _legend_columns(labels)
    legend_rows = -(-len(labels) // legend_columns)
    figure = Figure(figsize=(11, sum(heights) + 0.9 + 0.25 * legend_rows), layout="constrained", facecolor="white")
    figure.suptitle(_title(record), fontsize=12, color=INK, linespacing=1.5)
    if not heights:
        figure.text(0.5, 0.3, "nothing is logged yet", ha="center", color=GREY)
        return figure

    grid = figure.add_gridspec(len(heights), max(columns, 1), height_ratios=heights)
    if scores:
        axes = figure.add_subplot(grid[0, :])
        _draw_scores(axes, scores, record, colours)
        _draw_further(axes, evaluations, record, colours)
    for i, (metric, points) in enumerate(metrics):
        axes = figure.add_subplot(grid[bool(scores) + i // columns, i % columns])
        _draw_metric(axes, metric, points, record, colours)
    if labels:
        _legend(figure, labels, legend_columns)
    return figure


def _points(measurements: Sequence[Measurement], name: str) -> list[Point]:
    return [
        Point(row.update, row.member, value) for row in measurements if (value := row.metrics.get(name)) is not None
    ]


Combination = tuple[float, ...]
"""The swept values of a member."""
Colour = str
Colours = Mapping[Combination, Colour]


def _combination(member: Member) -> Combination:
    return tuple(member.swept.values())


def _colours(record: RunRecord, members: Sequence[Member]) -> Colours:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    combinations = list(dict.fromkeys(map(_combination, members or record.members)))
    if len(combinations) <= len(COLOURS):
        return dict(zip(combinations, COLOURS, strict=False))
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(combinations)))
    return dict(zip(combinations, map(to_hex, shades), strict=True))


def _draw_scores(axes: Axes, scores: Sequence[Point], record: RunRecord, colours: Colours) -> None:
    _draw(axes, scores, record, colours)
    count = record.settings.episodes
    title = f"Score: mean return of {count} episodes" if count > 1 else "Score: return of an episode"
    if record.data_return is not None:
        axes.axhline(record.data_return, color=INK, linewidth=1, linestyle="--")
        title += ", and of the data's episodes (dashed)"
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    if record.reference is not None:
        _normalised_axis(axes, record.reference)


def _draw_further(axes: Axes, evaluations: Sequence[Evaluation], record: RunRecord, colours: Colours) -> None:
    """For each further rule to act by a thin line, the mean over the seeds that are left, in its own kind of stroke."""
    title = axes.get_title(loc="left")
    rules = dict.fromkeys(rule for row in evaluations for rule in row.also)
    for rule, (stroke, word) in zip(rules, STROKES, strict=False):
        for combination, colour in colours.items():
            own: dict[int, list[float]] = {}
            for row in evaluations:
                if _combination(row.member) == combination and rule in row.also:
                    own.setdefault(row.update, []).append(row.also[rule].score)
            means = [float(np.mean(scores)) for scores in own.values()]
            axes.plot(list(own), means, color=colour, linewidth=1, linestyle=stroke)
        title += f"; by {rule} ({word})"
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def _draw_metric(axes: Axes, metric: Metric, points: Sequence[Point], record: RunRecord, colours: Colours) -> None:
    _draw(axes, points, record, colours)
    title = metric.title
    if metric.bound and _draw_bound(axes, metric.bound, record, colours):
        title += f" and its bound {metric.bound} (dashed)"
    if metric.scale == "log" and all(point.value > 0 for point in points):
        _logarithmic(axes)
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def _draw(axes: Axes, points: Sequence[Point], record: RunRecord, colours: Colours) -> None:
    num_seeds = len(record.settings.seeds)
    updates = sorted({point.update for point in points})
    for combination, colour in colours.items():
        seeds: dict[int, dict[int, float]] = {}
        for point in points:
            if _combination(point.member) == combination:
                seeds.setdefault(point.member.seed, {})[point.update] = point.value
        for of_seed in seeds.values():
            _line(axes, list(of_seed), list(of_seed.values()), colour, thick=num_seeds == 1)
        common = [update for update in updates if all(update in of_seed for of_seed in seeds.values())]
        if num_seeds > 1 and len(seeds) == num_seeds and common:
            values = [[of_seed[update] for update in common] for of_seed in seeds.values()]
            mean, std = mean_and_std_over_members(values)
            axes.fill_between(common, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
            _line(axes, common, mean.tolist(), colour, thick=True)
    axes.set_xlim(0, 1.02 * record.settings.updates)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axes.set_xlabel("updates", color=INK, fontsize=9)
    tidy(axes)


def _line(axes: Axes, updates: Sequence[int], values: Sequence[float], colour: Colour, thick: bool) -> None:
    width, alpha, size = (1.8, 1.0, 3.5) if thick else (0.8, 0.45, 2.0)
    marker = "o" if len(updates) <= FEW else ""
    axes.plot(updates, values, color=colour, linewidth=width, alpha=alpha, markersize=size, marker=marker)


def _draw_bound(axes: Axes, field: str, record: RunRecord, colours: Colours) -> bool:
    """Dashed lines at the values of the field that bounds a metric; whether there are any."""
    names = list(record.sweep)
    if field in names:
        bounds = {combination[names.index(field)]: colour for combination, colour in colours.items()}
    else:
        bounds = {float(getattr(record.config, field)): INK}
    drawn = [bound for bound in bounds if 0 < bound < math.inf]
    for bound in drawn:
        axes.axhline(bound, color=bounds[bound] if names == [field] else INK, linewidth=1, linestyle="--")
    return bool(drawn)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _normalised_axis(axes: Axes, reference: Reference) -> None:
    low, high = reference

    def normalised(returns: ArrayLike) -> ArrayLike:
        return normalised_score(np.asarray(returns), reference)

    def raw(score: ArrayLike) -> ArrayLike:
        return low + np.asarray(score) / 100 * (high - low)

    right = axes.secondary_yaxis("right", functions=(normalised, raw))
    right.set_ylabel("normalised score", color=INK, fontsize=9)
    right.tick_params(colors=INK, labelsize=8)
    right.spines["right"].set_color(GREY)


def _legend_labels(record: RunRecord, colours: Colours) -> list[tuple[str, Colour]]:
    """A label for each combination of swept values, none where nothing is swept."""
    if not record.sweep:
        return []
    return [
        (", ".join(f"{name} = {value:g}" for name, value in zip(record.sweep, combination, strict=True)), colour)
        for combination, colour in colours.items()
    ]


def _legend_columns(labels: Sequence[tuple[str, Colour]]) -> int:
    """As many as fit beside one another: about 130 characters, of which each label's line takes six."""
    longest = max((len(label) for label, _ in labels), default=0)
    return max(1, min(LEGEND_COLUMNS, 130 // (longest + 6)))


def _legend(figure: Figure, labels: Sequence[tuple[str, Colour]], columns: int) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, linewidth=1.8, label=label) for label, colour in labels]
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _title(record: RunRecord) -> str:
    source = record.dataset.source
    source = source if len(source) <= 80 else "…" + source[-79:]
    settings = record.settings
    facts = [str(record.environment or "no environment"), _seeds_text(settings.seeds), f"{settings.updates:,} updates"]
    return f"{record.algorithm} on {source}\n{'  ·  '.join(facts)}".replace("$", r"\$")


def _seeds_text(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    text = ", ".join(map(str, seeds)) if len(seeds) <= 8 else f"{seeds[0]}, …, {seeds[-1]} ({len(seeds)})"
    return f"seeds {text} (thin; mean ± std thick)"
