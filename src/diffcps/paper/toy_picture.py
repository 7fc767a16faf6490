"""Pictures of the toy problems: actions on the ring, scores over diffusion steps, stitched trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.envs import toy
from diffcps.paper.methods import METHODS
from diffcps.paper.toy_runs import Trajectories
from diffcps.plots import GREY, INK, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA_GREY = "#c4c4c4"
MAX_POINTS = 2000
"""Points drawn of each set; the scores are of all of them."""
LIMIT = 1.25


class Panel(NamedTuple):
    """A set of actions, "n 2"; without a method it is the data."""

    action: np.ndarray
    method: str | None = None
    num_steps: int | None = None
    on_data: float | None = None
    """Share of the actions that fall into the data, written below the title."""


class Line(NamedTuple):
    """A score over diffusion steps (or over distances), one row per seed: "seeds points"."""

    label: str
    colour: str
    x: Sequence[float]
    y: np.ndarray
    dashed: bool = False


def ring_figure(data: np.ndarray, rows: Sequence[Sequence[Panel | None]]) -> Figure:
    """Small multiples: a panel of actions in colour over the data in grey; None leaves a place empty."""
    from matplotlib.figure import Figure

    columns = len(rows[0])
    figure = Figure(figsize=(2.0 * columns, 2.4 * len(rows) + 0.5), layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
    for row, line in zip(grid, rows, strict=True):
        for axes, panel in zip(row, line, strict=True):
            if panel is None:
                axes.set_axis_off()
                continue
            _points(axes, data, DATA_GREY)
            if panel.method is not None:
                _points(axes, panel.action, METHODS[panel.method].colour)
            axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
            axes.set_title(_panel_title(panel), fontsize=8.5, color=INK, linespacing=1.3)
            axes.tick_params(colors=INK, labelsize=7, labelbottom=True, labelleft=axes is row[0])
            axes.spines[:].set_color(GREY)
    return figure


def score_figure(
    by_steps: Mapping[str, Sequence[Line]], by_distance: Sequence[Line], num_steps: int, distance: float
) -> Figure:
    """Scores over T, a panel for each entry of `by_steps` (title: lines); at `num_steps`, over the distance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * (len(by_steps) + 1), 3.9), layout="constrained", facecolor="white")
    *panels, last = figure.subplots(1, len(by_steps) + 1)
    for axes, (title, lines) in zip(panels, by_steps.items(), strict=True):
        for line in lines:
            _band(axes, line)
        axes.set_title(title, loc="left", fontsize=9, color=INK)
        axes.set_xlabel("diffusion steps T", fontsize=9, color=INK)
        axes.set_xticks(sorted({x for line in lines for x in line.x}))
        axes.set_ylim(-0.02, 1.02)
        tidy(axes)
    for line in by_distance:
        _band(last, line, marker="")
    last.axvline(distance, color=GREY, linewidth=1, linestyle=":")
    last.set(xscale="log", ylim=(-0.02, 1.02))
    last.set_title(f"Actions on the data, T = {num_steps}", loc="left", fontsize=9, color=INK)
    last.set_xlabel(f"distance allowed (dotted: {distance:g}, as on the left)", fontsize=9, color=INK)
    tidy(last)
    handles = {handle.get_label(): handle for axes in (*panels, last) for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(
        handles=list(handles.values()), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5
    )
    return figure


def stitching_figure(data: Trajectories, first: Mapping[str, Trajectories]) -> Figure:
    """The data's trajectories, and over them those of the first seed of each method, with returns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * (1 + len(first)), 2.95), layout="constrained", facecolor="white")
    grid = figure.subplots(1, 1 + len(first), squeeze=False)
    for axes, (method, shown) in zip(grid[0], [(None, data), *first.items()], strict=True):
        for position in data.position:
            axes.plot(*position.T, color=DATA_GREY, linewidth=0.5, alpha=0.5, rasterized=True)
        if method is not None:
            colour = METHODS[method].colour
            for position in shown.position:
                axes.plot(*position.T, color=colour, linewidth=1, alpha=0.7, marker=".", markersize=2.5)
        axes.plot(*toy.START, marker="o", color=INK, markersize=5)
        axes.plot(*toy.GOAL, marker="*", color=INK, markersize=9)
        axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        name = "Data" if method is None else METHODS[method].label
        returns = f"return {shown.returns.mean():.1f} ± {shown.returns.std():.1f}"
        axes.set_title(f"{name}\n{returns}", fontsize=9, color=INK, linespacing=1.3)
        axes.tick_params(colors=INK, labelsize=7)
        axes.spines[:].set_color(GREY)
    return figure


def _points(axes: Axes, action: np.ndarray, colour: str) -> None:
    action = action[:MAX_POINTS]
    size = 1.2 if len(np.unique(action, axis=0)) > 10 else 60.0  # a deterministic policy is a single point
    axes.scatter(*action.T, s=size, color=colour, linewidths=0, rasterized=True)


def _panel_title(panel: Panel) -> str:
    if panel.method is None:
        return f"Data\n{len(panel.action):,} actions"
    steps = "" if panel.num_steps is None else f", T = {panel.num_steps}"
    score = "" if panel.on_data is None else f"\n{panel.on_data:.0%} on the data"
    return f"{METHODS[panel.method].label}{steps}{score}"


def _band(axes: Axes, line: Line, marker: str = "o") -> None:
    """Mean over seeds with a band of one standard deviation."""
    y = np.atleast_2d(line.y)
    mean = y.mean(axis=0)
    (drawn,) = axes.plot(line.x, mean, color=line.colour, linewidth=1.6, label=line.label)
    if line.dashed:
        drawn.set_linestyle("--")
    else:
        drawn.set(marker=marker, markersize=3.5)
    if len(y) > 1:
        std = y.std(axis=0, ddof=1)
        axes.fill_between(line.x, mean - std, mean + std, color=line.colour, alpha=0.15, linewidth=0)
