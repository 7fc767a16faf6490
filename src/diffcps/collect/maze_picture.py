"""The picture of data collected in a maze: single trajectories, and where the data lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffcps.plots import BLUE, GREEN, GREY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAJECTORIES_DRAWN = 30
"""Taken at even distances from all."""
BINS_PER_CELL = 8


def maze_figure(
    walls: np.ndarray,
    position: np.ndarray,
    ends: np.ndarray,
    arrived: np.ndarray,
    title: str,
    *,
    start: np.ndarray | None = None,
    goal: np.ndarray | None = None,
) -> Figure:
    """Left some trajectories, blue where they arrived and orange where not, pale at their beginning; right all data.

    `walls` (rows, columns) bool; `position` (n, 2) as (row, column) in cells, whole numbers at the centres; `ends`
    (n_traj,) the row after the last of each trajectory and `arrived` (n_traj,) bool; `start` and `goal` (2,) positions.
    """
    from matplotlib.figure import Figure

    width = min(14.0, 2 * 0.75 * walls.shape[1] + 1.5)
    height = (width - 1.5) / 2 * walls.shape[0] / walls.shape[1] + 1.3
    figure = Figure(figsize=(max(width, 8.0), max(height, 4.2)), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=11, color=INK)
    single, density = figure.subplots(1, 2)
    begins = np.append(0, ends[:-1])
    chosen = np.unique(np.linspace(0, len(ends) - 1, min(TRAJECTORIES_DRAWN, len(ends))).astype(int))
    for axes in (single, density):
        draw_walls(axes, walls)
    for i in chosen:
        _draw_trajectory(single, position[begins[i] : ends[i]], BLUE if arrived[i] else ORANGE)
    single.set_title(
        f"{len(chosen)} of {len(ends):,} trajectories, dark at their end: {int(arrived[chosen].sum())} arrive (blue), "
        f"{int((~arrived[chosen]).sum())} not (orange)",
        fontsize=8,
        color=INK,
    )
    _draw_density(figure, density, walls, position)
    for axes in (single, density):
        for place, colour, marker, name in ((start, INK, "o", "start"), (goal, GREEN, "*", "goal at test")):
            if place is not None:
                size = 190 if marker == "*" else 60
                axes.scatter(
                    place[1], place[0], s=size, color=colour, marker=marker, edgecolor="white", label=name, zorder=4
                )
    if start is not None or goal is not None:
        single.legend(loc="lower left", fontsize=8, framealpha=0.9)
    return figure


def draw_walls(axes: Axes, walls: np.ndarray) -> None:
    """The walls (rows, columns) bool, and the frame of cells in which positions are drawn."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    squares = [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in np.argwhere(walls)]
    axes.add_collection(PatchCollection(squares, facecolor="#d8d8d8", edgecolor="#d8d8d8", linewidth=0.3, zorder=1))
    axes.set_xlim(-0.5, walls.shape[1] - 0.5)
    axes.set_ylim(walls.shape[0] - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xlabel("column", fontsize=9, color=INK)
    axes.set_ylabel("row", fontsize=9, color=INK)
    axes.set_xticks(range(walls.shape[1]))
    axes.set_yticks(range(walls.shape[0]))
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[:].set_color(GREY)


def _draw_trajectory(axes: Axes, position: np.ndarray, colour: str) -> None:
    """A line that grows darker from its beginning to its end."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    points = position[:: max(1, len(position) // 300)][:, ::-1]
    if len(points) < 2:
        return
    segments = np.stack([points[:-1], points[1:]], axis=1)
    strength = np.linspace(0.15, 0.9, len(segments))
    colours = np.column_stack([np.tile(to_rgb(colour), (len(segments), 1)), strength])
    axes.add_collection(LineCollection(list(segments), colors=colours, linewidths=1.1, zorder=2))


def _draw_density(figure: Figure, axes: Axes, walls: np.ndarray, position: np.ndarray) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    rows, columns = walls.shape
    counts, _, _ = np.histogram2d(
        position[:, 0],
        position[:, 1],
        bins=(rows * BINS_PER_CELL, columns * BINS_PER_CELL),
        range=((-0.5, rows - 0.5), (-0.5, columns - 0.5)),
    )
    shares = np.ma.masked_equal(counts / len(position), 0)
    shades = LinearSegmentedColormap.from_list("blues", ["#dbe6f1", BLUE, "#12263a"])
    image = axes.imshow(
        shares,
        cmap=shades,
        norm=LogNorm(vmin=max(float(shares.min()), 1e-6), vmax=float(shares.max())),
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        zorder=2,
        interpolation="nearest",
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.ax.spines[:].set_visible(False)
    axes.set_title(f"all {len(position):,} positions: share in each {BINS_PER_CELL}th of a cell", fontsize=8, color=INK)
