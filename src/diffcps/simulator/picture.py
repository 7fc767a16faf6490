"""How well stored steps fit a simulator, as a table in the terminal and as one picture."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from diffcps.plots import BLUE, GREEN, GREY, INK, ORANGE, save_figure, tidy
from diffcps.simulator.replay import Comparison
from diffcps.simulator.report import EntryErrors, Findings, Report, RewardErrors, StepErrors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST = 1e-9
"""Errors below this are drawn here: the axes are logarithmic."""
WIDTH = 170
"""Characters in a line of the picture's title."""


def check_table(report: Report) -> Group:
    """The report for a rich console: a row for each entry of the observation, what was found, the verdict."""
    sample, findings = report.sample, report.findings
    title = Text(f"{report.file.source} in {sample.environment}")
    found = Table(show_header=False)
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")
    skipped = "".join(f"\n{count:,} not judged: {reason}" for reason, count in sample.not_judged.items())
    found.add_row("judged", f"{sample.judged:,} of {sample.drawn:,} steps drawn{skipped}")
    found.add_row("state", Text(sample.state))
    if sample.goal is not None:
        found.add_row("goal", f"({sample.goal[0]:.3f}, {sample.goal[1]:.3f}), where the rewards have it")
    if findings is not None:
        _add_findings(found, findings)
    found.add_row("verdict", Text(report.verdict))
    return Group(title, found) if findings is None else Group(_errors(title, findings), found)


def _errors(title: Text, findings: Findings) -> Table:
    errors = Table(title=title, title_justify="left")
    errors.add_column("one step", style="bold")
    for name in ("median error", "99 %", "within rounding"):
        errors.add_column(name, justify="right", no_wrap=True)

    def row(name: str, numbers: EntryErrors | StepErrors | RewardErrors) -> None:
        errors.add_row(Text(name), f"{numbers.median:.1e}", f"{numbers.p99:.1e}", f"{numbers.agree:.1%}")

    for entry in findings.observation:
        row(f"{entry.entry} {entry.name}", entry)
    errors.add_section()
    row("worst of the above", findings.step)
    row("reward, in its units", findings.reward)
    return errors


def _add_findings(table: Table, findings: Findings) -> None:
    ends = findings.terminal
    confirmed = f"{ends.confirmed} of {ends.stored} looked at are confirmed"
    if ends.reward_agrees is not None:
        confirmed += f", {ends.reward_agrees:.1%} of their rewards agree"
    ended = f"{ends.ended_by_simulator} of {ends.going_on} other steps end in the simulator"
    table.add_row("terminals", f"{confirmed}\n{ended}")
    for version in findings.versions:
        shares = f"{version.agree:.1%} of steps and {version.reward:.1%} of rewards agree"
        if version.reward_at_terminals is not None:
            shares += f", {version.reward_at_terminals:.1%} of those at terminals"
        table.add_row(version.environment, shares)


def save_check_figure(report: Report, path: Path) -> None:
    """Errors of every entry of the observation, errors of the steps beside what rounding explains, and rewards.

    A png or pdf file, by its name; none where nothing can be judged. Raises `UserError` where it cannot be written.
    """
    if report.findings is not None:
        save_figure(_figure(report, report.findings), path, dpi=110)


def _figure(report: Report, findings: Findings) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.4), layout="constrained", facecolor="white")
    title = f"{report.file.source} in {report.sample.environment}"
    verdict = fill(report.verdict, WIDTH, max_lines=4, placeholder=" …")
    figure.suptitle(f"{title}\n{verdict}".replace("$", r"\$"), fontsize=9.5, color=INK, linespacing=1.4)
    axes = figure.subplot_mosaic([["entries", "entries"], ["steps", "rewards"]], height_ratios=[1.15, 1])
    _entries(axes["entries"], findings.observation, findings.comparison)
    _steps(axes["steps"], findings.comparison)
    _rewards(axes["rewards"], findings.comparison)
    return figure


def _entries(axes: Axes, entries: list[EntryErrors], found: Comparison) -> None:
    place = np.arange(len(entries))
    median = np.maximum([entry.median for entry in entries], SMALLEST)
    high = np.maximum([entry.p99 for entry in entries], SMALLEST)
    axes.vlines(place, median, high, color=GREY, linewidth=1.2)
    axes.scatter(place, high, s=26, marker="_", color=ORANGE, label="99th percentile", linewidths=2)
    axes.scatter(place, median, s=26, color=BLUE, label="median")
    axes.axhline(float(np.median(found.tolerance)), color=GREEN, linestyle="--", linewidth=1, label="rounding")
    axes.axhline(1.0, color=INK, linestyle=":", linewidth=1, label="one step's change")
    axes.set_yscale("log")
    several = max(1, len(entries) // 40)
    axes.set_xticks(place[::several])
    if len(entries) <= 40:
        labels = [f"{entry.entry} {entry.name}" for entry in entries]
        axes.set_xticklabels(labels, rotation=30 if len(entries) <= 20 else 90, ha="right")
    axes.set_title("Error of one step, by entry of the observation", fontsize=10, color=INK, loc="left")
    axes.set_ylabel("in one-step changes", color=INK)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper right", bbox_to_anchor=(1.0, 1.12))
    tidy(axes)
    axes.tick_params(axis="x", labelsize=7)


def _steps(axes: Axes, found: Comparison) -> None:
    error, tolerance = (np.clip(value, SMALLEST, 1e6) for value in (found.row_error, found.tolerance))
    low = np.log10(min(error.min(), tolerance.min()))
    high = np.log10(max(error.max(), tolerance.max()))
    bins = np.logspace(low - 0.1, high + 0.1, 60)
    axes.hist(error, bins=bins.tolist(), color=BLUE, label="error of the worst entry")
    axes.hist(tolerance, bins=bins.tolist(), histtype="step", color=GREEN, label="what rounding explains")
    axes.set_xscale("log")
    axes.set_title(f"Steps: {found.agree.mean():.1%} within rounding", fontsize=10, color=INK)
    axes.set_xlabel("in one-step changes", color=INK)
    axes.set_ylabel("steps", color=INK)
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)


def _rewards(axes: Axes, found: Comparison) -> None:
    stored, simulated = found.reward, found.simulated_reward
    ends = [float(min(stored.min(), simulated.min())), float(max(stored.max(), simulated.max()))]
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.scatter(simulated, stored, s=7, color=ORANGE, alpha=0.5, linewidths=0)
    axes.set_title(f"Rewards: {found.reward_agrees.mean():.1%} within rounding", fontsize=10, color=INK)
    axes.set_xlabel("simulator", color=INK)
    axes.set_ylabel("file", color=INK)
    tidy(axes)
