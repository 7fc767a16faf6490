"""The picture of collected locomotion data: returns of the online run, and of the episodes that were collected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffcps.plots import BLUE, GREY, INK, ORANGE, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def locomotion_figure(
    *,
    title: str,
    steps: np.ndarray,
    evaluations: np.ndarray,
    used: Sequence[int],
    medium: float,
    returns: np.ndarray,
) -> Figure:
    """Evaluations (snapshots, episodes) at steps (snapshots,) of the online run, and returns (episodes,) collected.

    `used` are the steps of the snapshots that collected (or up to which the replay buffer was taken), `medium` the
    return of the medium level. Without snapshots there is only the right half.
    """
    from matplotlib.figure import Figure

    columns = 1 if len(steps) == 0 else 2
    figure = Figure(figsize=(5.2 * columns, 3.6), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=11, color=INK)
    *first, right = figure.subplots(1, columns, squeeze=False)[0]
    for left in first:
        left.fill_between(steps, evaluations.min(axis=1), evaluations.max(axis=1), color=BLUE, alpha=0.2, linewidth=0)
        left.plot(steps, evaluations.mean(axis=1), color=BLUE, marker="o" if len(steps) < 20 else None, markersize=3)
        if np.isfinite(medium):
            left.axhline(medium, color=GREY, linestyle=":", linewidth=1)
            left.text(1.0, medium, " medium", transform=left.get_yaxis_transform(), color=GREY, fontsize=8, va="center")
        for step in used:
            left.axvline(step, color=ORANGE, linewidth=1)
            left.plot(step, evaluations[np.flatnonzero(steps == step)[0]].mean(), "o", color=ORANGE)
        left.set_title("Online run: mean and range of evaluations; chosen snapshot in orange", fontsize=8, color=INK)
        left.set_xlabel("steps", color=INK)
        left.set_ylabel("return", color=INK)
        left.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k")
        tidy(left)

    right.hist(returns, bins=int(np.clip(2 * len(returns) ** 0.5, 10, 50)), color=BLUE)
    right.axvline(float(returns.mean()), color=INK, linewidth=1, linestyle="--")
    right.set_title(
        f"Collected: {len(returns):,} episodes, return {returns.mean():.4g} ± {returns.std():.3g}",
        fontsize=8,
        color=INK,
    )
    right.set_xlabel("return", color=INK)
    right.set_ylabel("episodes", color=INK)
    tidy(right)
    return figure
