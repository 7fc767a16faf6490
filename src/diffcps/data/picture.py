"""A dataset as a table in the terminal and as one picture, of what `diffcps.data.summary` computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from diffcps.data.account import account_lines
from diffcps.data.summary import DatasetSummary, Statistics
from diffcps.plots import BLUE, GREEN, INK, ORANGE, save_figure, tidy
from diffcps.types import Dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACTION_COLUMNS = 6
"""Action histograms in one row of the picture."""


def dataset_table(summary: DatasetSummary) -> Table:
    """A summary as a rich table: print it with `rich.console.Console().print(...)`."""
    table = Table(title=Text(f"Dataset {summary.source}"), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: str) -> None:
        table.add_row(name, Text(value))

    row("environment", summary.environment or "not named")
    row("transitions", f"{summary.transitions:,} in {summary.episodes:,} episodes")
    row("sizes", f"observation {summary.observation_size}, action {summary.action_size}")
    row("episode ends", f"{summary.terminal_share:.1%} terminal, {1.0 - summary.terminal_share:.1%} timeout")
    table.add_section()
    row("return", _statistics_text(summary.returns))
    normalised = summary.normalised_mean
    row("normalised score", "no reference scores" if normalised is None else f"{normalised:.1f} (of the mean return)")
    row("length", _statistics_text(summary.lengths))
    row("planning", _planning_text(summary))
    row("reward", f"{_statistics_text(summary.rewards)}\n{summary.zero_reward_share:.1%} are zero")
    table.add_section()
    for i, action in enumerate(summary.actions):
        row(
            f"action {i}",
            f"{action.min:+.2f} to {action.max:+.2f}, mean {action.mean:+.3f}, std {action.std:.3f}, "
            f"{action.at_bound:.1%} at the bounds",
        )
    table.add_section()
    row("account", "\n".join(account_lines(summary.account)))
    row("warnings", "\n".join(summary.warnings) or "none")
    row("SHA-256", summary.sha256)
    return table


def _planning_text(summary: DatasetSummary) -> str:
    """Whether methods that plan whole trajectories can learn from it."""
    if not summary.account.ordered:
        return "impossible: the rows are not in the order of their episodes"
    return f"possible: the rows are in order; windows of up to {summary.lengths.max:,.0f} steps lie in one episode"


def dataset_figure(dataset: Dataset, returns: np.ndarray, lengths: np.ndarray) -> Figure:
    """Histograms of episode returns (episodes,), episode lengths (episodes,), rewards and each action dimension."""
    from matplotlib.figure import Figure

    action = np.asarray(dataset.action)
    action_size = action.shape[1]
    columns = min(action_size, ACTION_COLUMNS)
    action_rows = -(-action_size // columns)

    heights = [2.9, 1.9 * action_rows + 0.5]
    figure = Figure(figsize=(11, sum(heights) + 0.9), layout="constrained", facecolor="white")
    figure.suptitle(_title(dataset, returns), fontsize=12, color=INK, linespacing=1.5)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=heights, hspace=0.03)[:, 0]

    top_axes = top.subplots(1, 3)
    _histogram(top_axes[0], returns, "Episode return", "episodes", BLUE)
    _histogram(top_axes[1], lengths, "Episode length (steps)", "episodes", ORANGE)
    _histogram(top_axes[2], np.asarray(dataset.reward), "Reward", "steps", GREEN)

    bottom.suptitle("Actions, scaled to [−1, 1]: share of steps in each of 40 bins", fontsize=10, color=INK)
    panels = bottom.subplots(action_rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for i, panel in enumerate(panels):
        if i >= action_size:
            panel.remove()
            continue
        share = np.full(len(action), 1.0 / len(action))
        panel.hist(action[:, i], bins=np.linspace(-1, 1, 41).tolist(), weights=share, color=BLUE)
        panel.set_title(f"dimension {i}", fontsize=9, color=INK)
        panel.set_xlim(-1.05, 1.05)
        panel.set_xticks([-1, 0, 1])
        panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        if i + columns >= action_size:  # the lowest panel of its column
            panel.tick_params(labelbottom=True)
        tidy(panel)
        if i % columns:
            panel.tick_params(left=False)
    return figure


def save_dataset_figure(dataset: Dataset, returns: np.ndarray, lengths: np.ndarray, path: Path) -> None:
    """Draw `dataset_figure` into a PNG file. Raises `UserError` where it cannot be written."""
    save_figure(dataset_figure(dataset, returns, lengths), path)


def _title(dataset: Dataset, returns: np.ndarray) -> str:
    info = dataset.info
    facts = [] if info.environment is None else [str(info.environment)]
    facts += [
        f"{dataset.size:,} transitions",
        f"{len(returns):,} episodes",
        f"return {returns.mean():.4g} ± {returns.std():.3g}",
    ]
    source = info.source if len(info.source) <= 90 else "…" + info.source[-89:]
    return f"{source}\n{'  ·  '.join(facts)}".replace("$", r"\$")


def _histogram(axes: Axes, value: np.ndarray, name: str, unit: str, colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.hist(value, bins=int(np.clip(2 * len(value) ** 0.5, 10, 50)), color=colour)
    axes.set_xlabel(name, color=INK)
    axes.set_ylabel(unit, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    mean = float(value.mean(dtype=np.float64))
    axes.axvline(mean, color=INK, linewidth=1, linestyle="--")
    axes.set_title(f"mean {mean:.4g} (dashed)", loc="right", fontsize=9, color=INK)
    tidy(axes)


def _statistics_text(found: Statistics) -> str:
    return (
        f"{found.mean:.5g} ± {found.std:.4g}, from {found.min:.5g} to {found.max:.5g}, "
        f"quartiles {found.q25:.5g} / {found.median:.5g} / {found.q75:.5g}"
    )
