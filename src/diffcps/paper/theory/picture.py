"""The picture of the theory's checks: primal and dual values, dual steps, the cross-entropy over two losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffcps.paper.theory.duality import DualityRow, GapRow
from diffcps.paper.theory.iteration import IterationRow
from diffcps.paper.theory.surrogate import LOSSES, LineRow, Loss, SurrogateRow
from diffcps.paper.theory.tables import Tables
from diffcps.plots import BLUE, GREEN, INK, ORANGE, RED, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def theory_figure(tables: Tables) -> Figure:
    """Primal and dual values (theorem 3.7), dual steps (theorem 3.11), H over two losses (proposition 3.8)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 6.8), layout="constrained", facecolor="white")
    (duality, iteration), (simple, weighted) = figure.subplots(2, 2)
    _duality(duality, [row for row in tables.duality if row.seed == 0], tables.without_assumption)
    _iteration(iteration, tables.iteration)
    _surrogate(simple, tables, "L_c", r"$L_c(\pi_b, \mu)$", "H over $L_c$ (eq. 16)", 0.1)
    _surrogate(weighted, tables, "weighted", r"$\sum_i w_i\,\ell_i$", "H over the weighted loss (eq. 35)", 0.9)
    for axes in (duality, iteration, simple, weighted):
        tidy(axes)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    return figure


def _duality(axes: Axes, convex: Sequence[DualityRow], counterexample: Sequence[GapRow]) -> None:
    """Values from that of the smallest budget (0) to that of the largest (1)."""
    for rows, colour, name in ((convex, BLUE, "with assumption 3.5"), (counterexample, ORANGE, "without it")):
        low, high = rows[0].primal, rows[-1].primal
        budget = [row.budget for row in rows]
        primal = (np.array([row.primal for row in rows]) - low) / (high - low)
        dual = (np.array([row.dual for row in rows]) - low) / (high - low)
        axes.plot(budget, dual, color=colour, linewidth=1.6, label=f"dual, {name}")
        axes.plot(budget, primal, "o", color=colour, markersize=4, label=f"primal, {name}")
        axes.fill_between(budget, primal, dual, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set(ylim=(-0.05, 1.55), yticks=[0, 0.25, 0.5, 0.75, 1])
    _label(axes, "Theorem 3.7: primal and dual values", r"$\kappa_0 - H(\pi_b, \pi_b)$", "value, scaled to [0, 1]")


def _iteration(axes: Axes, rows: Sequence[IterationRow]) -> None:
    """Measured dual steps against the bound; counts of zero have no place on the axis."""
    shown = [row for row in rows if row.steps > 0]
    proof, printed = ([row for row in shown if row.constant == name] for name in ("proof", "printed"))
    violations = [row for row in shown if row.violation]
    groups = (
        (printed, GREEN, "o", 2.5, f"C as printed ({len(printed)})"),
        (proof, BLUE, "o", 5, f"C of the proof ({len(proof)})"),
        (violations, RED, "x", 7, f"above the bound ({len(violations)})"),
    )
    for points, colour, marker, size, name in groups:
        x, y = [row.bound for row in points], [row.steps for row in points]
        axes.plot(x, y, marker, color=colour, markersize=size, markerfacecolor="none", linestyle="", label=name)
    ends = [min(row.bound for row in shown) / 2, max(row.bound for row in shown) * 2]
    axes.plot(ends, ends, color=INK, linewidth=1, linestyle="--", label="K = bound")
    axes.set(xscale="log", yscale="log", ylim=(0.6, 20 * max(row.steps for row in shown)))
    label = r"bound $(\lambda_0 - \lambda^*)^2 / (2 \eta \varepsilon)$"
    _label(axes, "Theorem 3.11: dual steps to the neighbourhood", label, "measured K")


def _surrogate(axes: Axes, tables: Tables, loss: Loss, label: str, title: str, end: float) -> None:
    """Rises of H over rises of a loss from where the denoiser is the data's: many steps, and five (dashed)."""
    most = max(row.num_steps for row in tables.surrogate)
    for steps, style in ((most, "-"), (5, "--")):
        slopes = {line.family: line.slope for line in tables.lines if _shown(line, steps) and line.loss == loss}
        for family, colour in (("shifted", BLUE), ("narrower", ORANGE), ("wider", GREEN)):
            rows = [row for row in tables.surrogate if _shown(row, steps) and row.family == family]
            x = np.array([LOSSES[loss](row) - LOSSES[loss](rows[0]) for row in rows])
            y = np.array([row.H - rows[0].H for row in rows])
            name = f"{family}, T = {steps}, slope {slopes[family]:.2f}"
            axes.plot(x, y, style, color=colour, linewidth=1.6, label=name)
    axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=1.2, label="slope 1")
    axes.set(xlim=(-0.02 * end, end), ylim=(-0.1, 1.6))
    _label(axes, f"Proposition 3.8: {title}", f"rise of {label}", r"rise of $H(\pi_b, \mu)$")


def _shown(row: SurrogateRow | LineRow, steps: int) -> bool:
    return row.variance == "beta" and row.num_steps == steps


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
