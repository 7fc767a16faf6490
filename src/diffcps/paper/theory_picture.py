"""The checks of the paper's theory: one picture, and the few numbers that they come down to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcps.plots import BLUE, GREEN, INK, ORANGE, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RED = "#b5483f"
Rows = Sequence[Mapping[str, Any]]


def theory_summary(tables: Mapping[str, Rows]) -> dict[str, dict[str, float | int]]:
    """The outcome of each check, from the tables of `diffcps.paper.theory`."""
    duality, iteration = tables["duality"], tables["iteration"]
    worst = max(tables["without_assumption"], key=lambda row: row["gap"])
    most = max(row["num_steps"] for row in tables["lines"])
    summary: dict[str, dict[str, float | int]] = {
        "theorem 3.7": {
            "problems": len(duality),
            "largest gap": max(abs(row["gap"]) for row in duality),
            "largest excess of the constraint": max(row["excess"] for row in duality),
            "largest difference of the policies": max(row["policy_difference"] for row in duality),
        },
        "without assumption 3.5": {key: worst[key] for key in ("budget", "primal", "dual", "gap")},
        "theorem 3.11": {"least d - P*": min(row["above_primal"] for row in iteration)},
        "proposition 3.8": {},
    }
    for constant in ("proof", "printed"):
        rows = [row for row in iteration if row["constant"] == constant]
        steps = f"C {'of the proof' if constant == 'proof' else 'as printed'}"
        summary["theorem 3.11"] |= {
            f"{steps}: counts": len(rows),
            f"{steps}: counts above zero": sum(row["steps"] > 0 for row in rows),
            f"{steps}: violations": len(_violations(rows)),
            f"{steps}: violations where C bounds the slopes": sum(row["covered"] for row in _violations(rows)),
            f"{steps}: largest share of the bound": max(row["steps"] / row["bound"] for row in rows),
        }
    for line in tables["lines"]:
        if line["variance"] == "beta" and line["num_steps"] in (5, most):
            name = f"H over {line['loss']}, {line['family']}, T = {line['num_steps']}"
            summary["proposition 3.8"][f"{name}: slope"] = line["slope"]
            if line["family"] == "shifted":
                summary["proposition 3.8"][f"{name}: predicted slope"] = line["predicted"]
            if line["family"] == "all":
                summary["proposition 3.8"][f"{name}: deviation"] = line["deviation"]
    return summary


def theory_figure(tables: Mapping[str, Rows]) -> Figure:
    """Primal and dual values (theorem 3.7), dual steps (theorem 3.11), H over two losses (proposition 3.8)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 6.8), layout="constrained", facecolor="white")
    (duality, iteration), (simple, weighted) = figure.subplots(2, 2)
    _duality(duality, [row for row in tables["duality"] if row["seed"] == 0], tables["without_assumption"])
    _iteration(iteration, tables["iteration"])
    _surrogate(simple, tables, "L_c", r"$L_c(\pi_b, \mu)$", "H over $L_c$ (eq. 16)", 0.1)
    _surrogate(weighted, tables, "weighted", r"$\sum_i w_i\,\ell_i$", "H over the weighted loss (eq. 35)", 0.9)
    for axes in (duality, iteration, simple, weighted):
        tidy(axes)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    return figure


def _violations(rows: Rows) -> Rows:
    return [row for row in rows if row["steps"] > row["bound"]]


def _duality(axes: Axes, convex: Rows, counterexample: Rows) -> None:
    """Values from that of the smallest budget (0) to that of the largest (1)."""
    for rows, colour, name in ((convex, BLUE, "with assumption 3.5"), (counterexample, ORANGE, "without it")):
        low, high = rows[0]["primal"], rows[-1]["primal"]
        budget = [row["budget"] for row in rows]
        primal, dual = ((np.array([row[key] for row in rows]) - low) / (high - low) for key in ("primal", "dual"))
        axes.plot(budget, dual, color=colour, linewidth=1.6, label=f"dual, {name}")
        axes.plot(budget, primal, "o", color=colour, markersize=4, label=f"primal, {name}")
        axes.fill_between(budget, primal, dual, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set(ylim=(-0.05, 1.55), yticks=[0, 0.25, 0.5, 0.75, 1])
    _words(axes, "Theorem 3.7: primal and dual values", r"$\kappa_0 - H(\pi_b, \pi_b)$", "value, scaled to [0, 1]")


def _iteration(axes: Axes, rows: Rows) -> None:
    """Measured dual steps against the bound; counts of zero have no place on the axis."""
    shown = [row for row in rows if row["steps"] > 0]
    proof, printed = ([row for row in shown if row["constant"] == name] for name in ("proof", "printed"))
    groups = (
        (printed, GREEN, "o", 2.5, f"C as printed ({len(printed)})"),
        (proof, BLUE, "o", 5, f"C of the proof ({len(proof)})"),
        (_violations(shown), RED, "x", 7, f"above the bound ({len(_violations(shown))})"),
    )
    for points, colour, marker, size, name in groups:
        x, y = ([row[key] for row in points] for key in ("bound", "steps"))
        axes.plot(x, y, marker, color=colour, markersize=size, markerfacecolor="none", linestyle="", label=name)
    ends = [min(row["bound"] for row in shown) / 2, max(row["bound"] for row in shown) * 2]
    axes.plot(ends, ends, color=INK, linewidth=1, linestyle="--", label="K = bound")
    axes.set(xscale="log", yscale="log", ylim=(0.6, 20 * max(row["steps"] for row in shown)))
    label = r"bound $(\lambda_0 - \lambda^*)^2 / (2 \eta \varepsilon)$"
    _words(axes, "Theorem 3.11: dual steps to the neighbourhood", label, "measured K")


def _surrogate(axes: Axes, tables: Mapping[str, Rows], loss: str, label: str, title: str, end: float) -> None:
    """Rises of H over rises of a loss from where the denoiser is the data's: many steps, and five (dashed)."""
    most = max(row["num_steps"] for row in tables["surrogate"])
    for steps, style in ((most, "-"), (5, "--")):
        lines = {line["family"]: line for line in tables["lines"] if _case(line, steps) and line["loss"] == loss}
        for family, colour in (("shifted", BLUE), ("narrower", ORANGE), ("wider", GREEN)):
            rows = [row for row in tables["surrogate"] if _case(row, steps) and row["family"] == family]
            x, y = (np.array([row[key] - rows[0][key] for row in rows]) for key in (loss, "H"))
            name = f"{family}, T = {steps}, slope {lines[family]['slope']:.2f}"
            axes.plot(x, y, style, color=colour, linewidth=1.6, label=name)
    axes.plot([0, 1], [0, 1], ":", color=INK, linewidth=1.2, label="slope 1")
    axes.set(xlim=(-0.02 * end, end), ylim=(-0.1, 1.6))
    _words(axes, f"Proposition 3.8: {title}", f"rise of {label}", r"rise of $H(\pi_b, \mu)$")


def _case(row: Mapping[str, Any], steps: int) -> bool:
    return row["variance"] == "beta" and row["num_steps"] == steps


def _words(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
