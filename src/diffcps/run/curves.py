"""The course of a run as one picture."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffcps.evaluation.scores import mean_and_std_over_members
from diffcps.plots import BLUE, GREEN, GREY, INK, ORANGE, tidy
from diffcps.tasks.references import normalised_score
from diffcps.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, "#b5483f", "#7d62a8", "#3d9aa8")
"""One per combination of swept values; with more combinations the colours come from a scale."""
LEGEND_COLUMNS = 5
FEW = 40
"""Up to so many points of a line are marked."""

Row = dict[str, Any]


class Panel(NamedTuple):
    """One metric over updates: its key in a row, its title, and whether its axis is logarithmic."""

    key: str
    title: str
    logarithmic: bool = False


PANELS = (
    Panel("actor/bc_loss", "Denoising loss $L_c$", logarithmic=True),
    Panel("dual/multiplier", "Lagrange multiplier λ"),
    Panel("critic/q", "Q of the data's actions"),
    Panel("critic/loss", "Critic loss (squared TD errors)", logarithmic=True),
)


def save_curves(run: Path, path: Path) -> None:
    """Draws the logs of the run folder `run` into the PNG file `path`, which is replaced as a whole.

    Raises `UserError` where it cannot be written.
    """
    config = json.loads((run / "config.json").read_text())
    figure = curves_figure(config, _rows(run / "metrics.jsonl"), _rows(run / "evaluations.jsonl"))
    temporary = path.with_name(path.name + ".tmp")
    try:
        figure.savefig(temporary, dpi=150, format="png")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be written ({error.strerror}); check the folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def curves_figure(config: Mapping[str, Any], metrics: Sequence[Row], evaluations: Sequence[Row]) -> Figure:
    """Scores and metrics over updates, a panel each where there are any.

    Seeds are thin lines; their mean, as long as all of them are there, a thick one with a band of one standard
    deviation; each combination of swept values has its colour.
    """
    from matplotlib.figure import Figure

    scored = [row for row in evaluations if row["score"] is not None]
    panels = [panel for panel in PANELS if any(row.get(panel.key) is not None for row in metrics)]
    colours = _colours(config, metrics or evaluations)

    columns = len(panels) if len(panels) < 4 else 2
    heights = [3.6] * bool(scored) + [2.7] * (-(-len(panels) // columns) if panels else 0)
    legend_rows = -(-len(colours) // LEGEND_COLUMNS) if config["sweep"] else 0
    figure = Figure(figsize=(11, sum(heights) + 0.9 + 0.25 * legend_rows), layout="constrained", facecolor="white")
    figure.suptitle(_title(config), fontsize=12, color=INK, linespacing=1.5)
    if not heights:
        figure.text(0.5, 0.3, "nothing is logged yet", ha="center", color=GREY)
        return figure

    grid = figure.add_gridspec(len(heights), max(columns, 1), height_ratios=heights)
    if scored:
        axes = figure.add_subplot(grid[0, :])
        _draw(axes, scored, "score", config, colours)
        title = f"Score: mean return of {config['episodes']} episodes"
        if config.get("data_return") is not None:
            axes.axhline(config["data_return"], color=INK, linewidth=1, linestyle="--")
            title += ", and of the data's episodes (dashed)"
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        if config["reference"] is not None:
            _normalised_axis(axes, config["reference"])
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(grid[bool(scored) + i // columns, i % columns])
        _draw(axes, metrics, panel.key, config, colours)
        title = panel.title
        if panel.key == "actor/bc_loss" and _draw_kappa(axes, config, colours):
            title += " and its bound κ (dashed)"
        if panel.logarithmic:
            _logarithmic(axes)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    if config["sweep"]:
        _legend(figure, config, colours)
    return figure


def _rows(path: Path) -> list[Row]:
    """The rows of a log; a last line that a kill left unfinished is not counted."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


Combination = tuple[float, ...]
"""The swept values of a member."""
Colours = dict[Combination, Any]


def _combination(row: Row, config: Mapping[str, Any]) -> Combination:
    return tuple(row[name] for name in config["sweep"])


def _colours(config: Mapping[str, Any], rows: Sequence[Row]) -> Colours:
    from matplotlib import colormaps

    combinations = list(dict.fromkeys(_combination(row, config) for row in rows))
    if len(combinations) <= len(COLOURS):
        return dict(zip(combinations, COLOURS, strict=False))
    return dict(zip(combinations, colormaps["viridis"](np.linspace(0, 0.85, len(combinations))), strict=True))


def _draw(axes: Axes, rows: Sequence[Row], key: str, config: Mapping[str, Any], colours: Colours) -> None:
    several = len(config["seeds"]) > 1
    thin, thick = {"linewidth": 0.8, "alpha": 0.45, "markersize": 2.0}, {"linewidth": 1.8, "markersize": 3.5}
    for combination, colour in colours.items():
        own = [row for row in rows if _combination(row, config) == combination and row.get(key) is not None]
        seeds: dict[int, dict[int, float]] = {}
        for row in own:
            seeds.setdefault(row["seed"], {})[row["update"]] = row[key]
        for points in seeds.values():
            _line(axes, list(points), list(points.values()), colour, thin if several else thick)
        common = sorted(set.intersection(*map(set, seeds.values()))) if len(seeds) == len(config["seeds"]) else []
        if several and common:
            mean, std = mean_and_std_over_members([[points[update] for update in common] for points in seeds.values()])
            axes.fill_between(common, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
            _line(axes, common, mean, colour, thick)
    axes.set_xlim(0, 1.02 * config["updates"])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axes.set_xlabel("updates", color=INK, fontsize=9)
    tidy(axes)


def _line(axes: Axes, updates: Sequence[int], values: Any, colour: Any, style: Mapping[str, Any]) -> None:
    axes.plot(updates, values, color=colour, marker="o" if len(updates) <= FEW else "", **style)


def _draw_kappa(axes: Axes, config: Mapping[str, Any], colours: Colours) -> bool:
    """Dashed lines at the bounds on L_c, where the algorithm has one; whether there are any."""
    names = list(config["sweep"])
    if "kappa" in names:
        bounds = {combination[names.index("kappa")]: colour for combination, colour in colours.items()}
    else:
        bounds = {float(config["config"].get("kappa", math.inf)): INK}
    drawn = [kappa for kappa in bounds if 0 < kappa < math.inf]
    for kappa in drawn:
        axes.axhline(kappa, color=bounds[kappa] if names == ["kappa"] else INK, linewidth=1, linestyle="--")
    return bool(drawn)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _normalised_axis(axes: Axes, reference: Sequence[float]) -> None:
    low, high = reference

    def raw(score: Any) -> np.ndarray:
        return low + np.asarray(score) / 100 * (high - low)

    right = axes.secondary_yaxis(
        "right", functions=(lambda score: normalised_score(np.asarray(score), (low, high)), raw)
    )
    right.set_ylabel("normalised score", color=INK, fontsize=9)
    right.tick_params(colors=INK, labelsize=8)
    right.spines["right"].set_color(GREY)


def _legend(figure: Figure, config: Mapping[str, Any], colours: Colours) -> None:
    from matplotlib.lines import Line2D

    lines = []
    for combination, colour in colours.items():
        label = ", ".join(f"{name} = {value:g}" for name, value in zip(config["sweep"], combination, strict=True))
        lines.append(Line2D([], [], color=colour, linewidth=1.8, label=label))
    figure.legend(handles=lines, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=9)


def _title(config: Mapping[str, Any]) -> str:
    source = config["dataset"]["source"]
    source = source if len(source) <= 80 else "…" + source[-79:]
    facts = [config["env"] or "no environment", _seeds_words(config["seeds"]), f"{config['updates']:,} updates"]
    return f"{config['algorithm']} on {source}\n{'  ·  '.join(facts)}".replace("$", r"\$")


def _seeds_words(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    words = ", ".join(map(str, seeds)) if len(seeds) <= 8 else f"{seeds[0]}, …, {seeds[-1]} ({len(seeds)})"
    return f"seeds {words} (thin; mean ± std thick)"
