"""Learning curves of a comparison as one picture, a panel for each set of data."""

from __future__ import annotations

import math
from pathlib import Path

from diffcps.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, TEAL, save_figure, tidy
from diffcps.study.compare import columns_of, labels_of, trials_of
from diffcps.study.course import score_curves
from diffcps.study.formats import UNITS, data_heading
from diffcps.study.plan import read_study
from diffcps.study.results import results_of
from diffcps.study.run import PLAN, standing_of

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, TEAL, GREY)
COLUMNS = 3


def draw_curves(out: Path, path: Path) -> Path:
    """The study in the folder `out` as it is: means over seeds with bands of one deviation. Returns `path`."""
    from matplotlib.figure import Figure

    study = read_study(out / PLAN)
    trials = trials_of(standing_of(out), results_of(study, out))
    columns, labels = columns_of(trials), labels_of(trials)
    height = math.ceil(len(columns) / COLUMNS)
    width = min(COLUMNS, len(columns))
    figure = Figure(figsize=(4.2 * width, 3.1 * height + 0.5), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False).flat
    for panel, column in zip(panels, columns, strict=False):
        curves = score_curves(trials, column.data, column.unit)
        if not curves:
            panel.text(0.5, 0.5, "no score yet", ha="center", color=GREY, transform=panel.transAxes)
        for curve in curves:
            colour = COLOURS[labels.index(curve.label) % len(COLOURS)]
            panel.plot(
                curve.updates, curve.mean, color=colour, label=curve.label, linewidth=1.6, marker="o", markersize=3
            )
            if curve.deviation is not None:
                low, high = (
                    [mean + sign * spread for mean, spread in zip(curve.mean, curve.deviation, strict=True)]
                    for sign in (-1, 1)
                )
                panel.fill_between(curve.updates, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_xlim(left=0)
        panel.set_title(data_heading(column), fontsize=10)
        panel.set_xlabel("updates", fontsize=8)
        panel.set_ylabel(UNITS[column.unit], fontsize=8)
        tidy(panel)
    for panel in figure.axes[len(columns) :]:
        panel.set_axis_off()
    handles = {}
    for panel in figure.axes:
        found, names = panel.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    if handles:
        columns_of_legend = min(4, len(handles))
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns_of_legend, fontsize=8)
    save_figure(figure, path)
    return path
