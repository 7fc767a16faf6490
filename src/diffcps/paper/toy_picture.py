"""Pictures of the toy problems: actions on the ring, scores over diffusion steps, stitched trajectories."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.plots import BLUE, GREEN, GREY, INK, ORANGE, tidy
from diffcps.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "awr": "AWR",
    "sfbc": "SfBC",
    "diffusion_ql": "Diffusion-QL",
    "diffcps": "DiffCPS",
    "diffusion_bc": "Diffusion BC",
    "td3_bc": "TD3+BC",
    "bcq": "BCQ",
    "bear": "BEAR",
    "bc": "BC (Gaussian)",
}
"""How the methods are called in titles."""
COLOURS = {
    "awr": "#3d9aa8",
    "sfbc": GREEN,
    "diffusion_ql": ORANGE,
    "diffcps": BLUE,
    "diffusion_bc": "#7d62a8",
    "td3_bc": "#3d9aa8",
    "bcq": GREEN,
    "bear": "#b5483f",
    "bc": "#b5483f",
}
DATA_GREY = "#c4c4c4"
MAX_POINTS = 2000
"""Points drawn of each set; the scores are of all of them."""
DPI = 110
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


class Path2D(NamedTuple):
    """Trajectories, "episodes steps 2", with the return of each; without a method they are the data."""

    position: np.ndarray
    returns: np.ndarray
    method: str | None = None


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
                _points(axes, panel.action, COLOURS[panel.method])
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


def stitching_figure(
    data: Path2D, paths: Sequence[Path2D], start: tuple[float, float], goal: tuple[float, float]
) -> Figure:
    """The data's trajectories and those of each method over them, with returns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * (1 + len(paths)), 2.95), layout="constrained", facecolor="white")
    for axes, shown in zip(figure.subplots(1, 1 + len(paths)), [data, *paths], strict=True):
        for position in data.position:
            axes.plot(*position.T, color=DATA_GREY, linewidth=0.5, alpha=0.5, rasterized=True)
        if shown.method is not None:
            for position in shown.position:
                axes.plot(*position.T, color=COLOURS[shown.method], linewidth=1, alpha=0.7, marker=".", markersize=2.5)
        axes.plot(*start, marker="o", color=INK, markersize=5)
        axes.plot(*goal, marker="*", color=INK, markersize=9)
        axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        name = "Data" if shown.method is None else LABELS[shown.method]
        returns = f"return {shown.returns.mean():.1f} ± {shown.returns.std():.1f}"
        axes.set_title(f"{name}\n{returns}", fontsize=9, color=INK, linespacing=1.3)
        axes.tick_params(colors=INK, labelsize=7)
        axes.spines[:].set_color(GREY)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes `path` with the suffixes .png and .pdf, each replaced as a whole. Raises `UserError`."""
    for suffix in ("png", "pdf"):
        target = path.with_suffix(f".{suffix}")
        temporary = target.with_name(target.name + ".tmp")
        try:
            figure.savefig(temporary, dpi=DPI, format=suffix)
            os.replace(temporary, target)
        except OSError as error:
            raise UserError(f"{target}: the picture cannot be written ({error.strerror}); check the folder") from error
        finally:
            temporary.unlink(missing_ok=True)


def _points(axes: Axes, action: np.ndarray, colour: str) -> None:
    action = action[:MAX_POINTS]
    size = 1.2 if len(np.unique(action, axis=0)) > 10 else 60.0  # a deterministic policy is a single point
    axes.scatter(*action.T, s=size, color=colour, linewidths=0, rasterized=True)


def _panel_title(panel: Panel) -> str:
    if panel.method is None:
        return f"Data\n{len(panel.action):,} actions"
    steps = "" if panel.num_steps is None else f", T = {panel.num_steps}"
    score = "" if panel.on_data is None else f"\n{panel.on_data:.0%} on the data"
    return f"{LABELS[panel.method]}{steps}{score}"


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
