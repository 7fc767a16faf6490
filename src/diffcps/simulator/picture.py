"""How well stored steps fit a simulator, as a table in the terminal and as one picture.

Both take what `diffcps.simulator.check.check_simulator` returns.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from diffcps.plots import BLUE, GREEN, GREY, INK, ORANGE, tidy
from diffcps.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST = 1e-9
"""Errors below this are drawn here: the axes are logarithmic."""
WIDTH = 170
"""Characters in a line of the picture's title."""


def check_table(summary: dict[str, Any]) -> Group:
    """The summary for a rich console: a row for each entry of the observation, what was found, the verdict."""
    title = Text(f"{summary['source']} in {summary['environment']}")
    errors = Table(title=title, title_justify="left")
    errors.add_column("one step", style="bold")
    for name in ("median error", "99 %", "within rounding"):
        errors.add_column(name, justify="right", no_wrap=True)

    def row(name: str, numbers: dict[str, Any]) -> None:
        errors.add_row(Text(name), f"{numbers['median']:.1e}", f"{numbers['p99']:.1e}", f"{numbers['agree']:.1%}")

    for entry in summary.get("observation", ()):
        row(f"{entry['entry']} {entry['name']}", entry)
    errors.add_section()
    for name, key in (("worst of the above", "step"), ("reward, in its units", "reward")):
        if key in summary:
            row(name, summary[key])

    found = Table(show_header=False)
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")
    skipped = "".join(f"\n{count:,} not judged: {reason}" for reason, count in summary["not_judged"].items())
    found.add_row("judged", f"{summary['judged']:,} of {summary['drawn']:,} steps drawn{skipped}")
    found.add_row("state", Text(summary["state"]))
    if goal := summary.get("goal"):
        found.add_row("goal", f"({goal[0]:.3f}, {goal[1]:.3f}), where the rewards have it")
    if terminal := summary.get("terminal"):
        words = f"{terminal['confirmed']} of {terminal['stored']} looked at are confirmed"
        if terminal["reward_agrees"] is not None:
            words += f", {terminal['reward_agrees']:.1%} of their rewards agree"
        ended = f"{terminal['ended_by_simulator']} of {terminal['going_on']} other steps end in the simulator"
        found.add_row("terminals", f"{words}\n{ended}")
    for version in summary.get("versions", ()):
        words = f"{version['agree']:.1%} of steps and {version['reward']:.1%} of rewards agree"
        if version["reward_at_terminals"] is not None:
            words += f", {version['reward_at_terminals']:.1%} of those at terminals"
        found.add_row(version["environment"], words)
    found.add_row("verdict", Text(summary["verdict"]))
    return Group(errors, found) if "observation" in summary else Group(title, found)


def check_figure(summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    """Errors of every entry of the observation, errors of the steps beside what rounding explains, and rewards."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.4), layout="constrained", facecolor="white")
    title = f"{summary['source']} in {summary['environment']}"
    verdict = fill(summary["verdict"], WIDTH, max_lines=4, placeholder=" …")
    figure.suptitle(f"{title}\n{verdict}".replace("$", r"\$"), fontsize=9.5, color=INK, linespacing=1.4)
    axes = figure.subplot_mosaic([["entries", "entries"], ["steps", "rewards"]], height_ratios=[1.15, 1])
    _entries(axes["entries"], summary["observation"], arrays)
    _steps(axes["steps"], arrays)
    _rewards(axes["rewards"], arrays)
    return figure


def save_check_figure(summary: dict[str, Any], arrays: dict[str, np.ndarray], path: Path) -> None:
    """Draw `check_figure` into a PNG file. Raises `UserError` where it cannot be written."""
    try:
        check_figure(summary, arrays).savefig(path, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be written ({error.strerror}); check the folder") from error


def _entries(axes: Axes, entries: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
    place = np.arange(len(entries))
    median, high = (np.maximum([entry[key] for entry in entries], SMALLEST) for key in ("median", "p99"))
    axes.vlines(place, median, high, color=GREY, linewidth=1.2)
    axes.scatter(place, high, s=26, marker="_", color=ORANGE, label="99th percentile", linewidths=2)
    axes.scatter(place, median, s=26, color=BLUE, label="median")
    axes.axhline(float(np.median(arrays["tolerance"])), color=GREEN, linestyle="--", linewidth=1, label="rounding")
    axes.axhline(1.0, color=INK, linestyle=":", linewidth=1, label="one step's change")
    axes.set_yscale("log")
    several = max(1, len(entries) // 40)
    axes.set_xticks(place[::several])
    if len(entries) <= 40:
        labels = [f"{entry['entry']} {entry['name']}" for entry in entries]
        axes.set_xticklabels(labels, rotation=30 if len(entries) <= 20 else 90, ha="right")
    axes.set_title("Error of one step, by entry of the observation", fontsize=10, color=INK, loc="left")
    axes.set_ylabel("in one-step changes", color=INK)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper right", bbox_to_anchor=(1.0, 1.12))
    tidy(axes)
    axes.tick_params(axis="x", labelsize=7)


def _steps(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    error, tolerance = (np.clip(arrays[name], SMALLEST, 1e6) for name in ("row_error", "tolerance"))
    low = np.log10(min(error.min(), tolerance.min()))
    high = np.log10(max(error.max(), tolerance.max()))
    bins = np.logspace(low - 0.1, high + 0.1, 60)
    axes.hist(error, bins=bins.tolist(), color=BLUE, label="error of the worst entry")
    axes.hist(tolerance, bins=bins.tolist(), histtype="step", color=GREEN, label="what rounding explains")
    axes.set_xscale("log")
    axes.set_title(f"Steps: {arrays['agree'].mean():.1%} within rounding", fontsize=10, color=INK)
    axes.set_xlabel("in one-step changes", color=INK)
    axes.set_ylabel("steps", color=INK)
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)


def _rewards(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    stored, simulated = arrays["reward"], arrays["predicted_reward"]
    ends = [float(min(stored.min(), simulated.min())), float(max(stored.max(), simulated.max()))]
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.scatter(simulated, stored, s=7, color=ORANGE, alpha=0.5, linewidths=0)
    axes.set_title(f"Rewards: {arrays['reward_agrees'].mean():.1%} within rounding", fontsize=10, color=INK)
    axes.set_xlabel("simulator", color=INK)
    axes.set_ylabel("file", color=INK)
    tidy(axes)
