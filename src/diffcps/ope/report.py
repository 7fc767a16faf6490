"""What `diffcps ope` has found, for people: a table, what it may be trusted for, a picture."""

# JAX and matplotlib leave some of their types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from diffcps.evaluation.statistics import stats
from diffcps.ope.choice import Choice, choices
from diffcps.ope.estimate import Estimated, Judgement
from diffcps.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, TEAL, save_figure, tidy
from diffcps.run.table import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, TEAL)
MAX_SHOWN = 40
"""Policies that the terminal shows; the file has all."""
TOP = (1, 3, 5)
"""k of regret at k."""


@dataclass(frozen=True)
class Ranking:
    """How far the order by the estimates is the order by the returns that were played."""

    policies: int
    """Those that have both."""
    correlation: float
    """Spearman's, of the ranks: 1 the same order, 0 none, -1 the opposite."""
    p_value: float
    """Of no correlation at all, two-sided; policies of one run are not independent, so that it is too small."""
    regret: tuple[tuple[int, float], ...]
    """(k, what the best of the k highest estimates lacks to the best of all, as a share of the range of returns)."""


def ranking(estimates: Sequence[Estimated]) -> Ranking | None:
    """Of the policies that were played, too; None for fewer than three, or where all returned the same.

    Reference: the measures of the deep off-policy evaluation benchmark (arXiv:2103.16596). Raises `UserError` where
    SciPy is missing.
    """
    both = [
        (one.value, one.policy.score) for one in estimates if one.value is not None and one.policy.score is not None
    ]
    if len(both) < 3:
        return None
    value, score = np.array(both).T
    if np.ptp(score) == 0 or np.ptp(value) == 0:
        return None
    correlation, p_value = stats().spearmanr(value, score)
    return Ranking(len(both), float(correlation), float(p_value), tuple((k, regret(value, score, k)) for k in TOP))


def regret(value: np.ndarray, score: np.ndarray, k: int) -> float:
    """(max score - the greatest score among the k highest values) / (max score - min score)."""
    chosen = score[np.argsort(-value, kind="stable")[:k]]
    return float((score.max() - chosen.max()) / np.ptp(score))


# --- Words ---

HEADINGS = ("run", "member", "after", "J", "95 %, first states", "played")


def _names(found: Judgement) -> dict[str, str]:
    """The runs by the last parts of their paths, where these tell them apart."""
    runs = list(dict.fromkeys(one.policy.run for one in found.estimates))
    last = [Path(run).name for run in runs]
    return dict(zip(runs, last if len(set(last)) == len(last) else runs, strict=True))


def _cells(one: Estimated, name: str) -> list[str]:
    policy = one.policy
    value = "ran away" if one.value is None else number_text(one.value)
    interval = "" if one.low is None or one.high is None else f"{number_text(one.low)} to {number_text(one.high)}"
    score = "–" if policy.score is None else number_text(policy.score)
    return [name, policy.label, f"{policy.updates:,}", value, interval, score]


def in_order(found: Judgement) -> list[Estimated]:
    """The highest estimate first."""
    return sorted(found.estimates, key=lambda one: one.worth, reverse=True)


def ope_table(found: Judgement) -> Table:
    """A row for each policy, the highest estimate first."""
    title = f"Value of {len(found.estimates)} policies on {found.source}, discount {found.config.discount:g}"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, pad_edge=False, min_width=70)
    for name in HEADINGS:
        table.add_column(name, justify="left" if name in HEADINGS[:2] else "right", overflow="fold")
    names = _names(found)
    for one in in_order(found)[:MAX_SHOWN]:
        table.add_row(*map(Text, _cells(one, names[one.policy.run])))
    if len(found.estimates) > MAX_SHOWN:
        table.add_row(f"... and {len(found.estimates) - MAX_SHOWN} more")
    return table


def lines(found: Judgement) -> list[str]:
    """What the numbers mean, a line each."""
    say = [
        f"J is the discounted sum of rewards from the first states of the data's {found.episodes:,} episodes; the "
        f"data's own is {number_text(found.logged_value)} (what comes behind a time limit not counted). The interval "
        "speaks of other first states, not of the error of Q: fitted Q evaluation is biased where a policy leaves the "
        "data."
    ]
    if found.transitions < found.of_transitions:
        some = f"{found.transitions:,} of {found.of_transitions:,} transitions"
        say.append(f"Fitted on {some}, drawn once (--rows 0: all).")
    if found.moves:
        say.append("The estimates still moved in the last part of the fitting: more --fit-updates will change them.")
    gone = [one for one in found.estimates if one.value is None]
    if gone:
        say.append(f"The values of {len(gone)} policies ran away: nothing is said of them.")
    order = ranking(found.estimates)
    if order is not None:
        regrets = ", ".join(f"{share:.2f} at {k}" for k, share in order.regret if k <= order.policies)
        say.append(
            f"Where {order.policies} policies were played: rank correlation {order.correlation:.2f} "
            f"(p = {order.p_value:.2g}, as if they were independent), regret {regrets} (share of the range of returns)."
        )
    return [*say, *_of_choices(choices(found.estimates), _names(found))]


def _of_choices(found: Sequence[Choice], names: Mapping[str, str]) -> list[str]:
    """Which checkpoint to take, and what was played of it."""
    say: list[str] = []
    for choice in found:
        words = [f"by the estimate {_place(choice.by_value)}"]
        if choice.by_loss is not None:
            words.append(f"by selection/loss {_place(choice.by_loss)}")
        words.append(f"last {_place(choice.last)}")
        if choice.best is not None:
            words.append(f"best {_place(choice.best)}, which asks the environment")
        say.append(f"{names[choice.run]}, {choice.label}: {', '.join(words)}.")
    return say


def _place(one: Estimated) -> str:
    played = "" if one.policy.score is None else f" (played: {number_text(one.policy.score)})"
    return f"{one.policy.updates:,}{played}"


def markdown(found: Judgement) -> str:
    """The table and the lines as Markdown."""
    names = _names(found)
    rows = [_row(HEADINGS), "|" + "---|" * len(HEADINGS)]
    rows += [_row(_cells(one, names[one.policy.run])) for one in in_order(found)]
    return "\n".join([*rows, "", *(f"- {line}" for line in lines(found))]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --- The picture ---


def save_ope_figure(found: Judgement, path: Path) -> None:
    """Draws the estimates over updates, and beside the returns that were played, into a PNG file.

    Raises `UserError` where it cannot be written.
    """
    save_figure(ope_figure(found), path, within_run=True)


def ope_figure(found: Judgement) -> Figure:
    """Estimates over updates, with the data's own return; where policies were played, estimates against returns."""
    from matplotlib.figure import Figure

    known = [one for one in found.estimates if one.value is not None]
    played = [one for one in known if one.policy.score is not None]
    runs = list(dict.fromkeys(one.policy.run for one in known))
    panels = 1 + bool(played)
    names, rows = _names(found), -(-len(runs) // 3)
    figure = Figure(figsize=(5.5 * panels, 4.4 + 0.25 * rows), layout="constrained", facecolor="white")
    figure.suptitle(f"Fitted Q evaluation on {Path(found.source).name}", fontsize=11, color=INK)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _over_updates(axes[0], known, runs, names, found)
    if played:
        _against_returns(axes[1], played, runs)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _colour(runs: Sequence[str], run: str) -> str:
    return COLOURS[runs.index(run) % len(COLOURS)]


def _over_updates(
    axes: Axes, known: Sequence[Estimated], runs: Sequence[str], names: Mapping[str, str], found: Judgement
) -> None:
    members: dict[tuple[str, int], list[Estimated]] = {}
    for one in sorted(known, key=lambda one: one.policy.updates):
        members.setdefault((one.policy.run, one.policy.member), []).append(one)
    labelled: set[str] = set()
    for (run, _), own in members.items():
        updates, values = [one.policy.updates for one in own], [one.worth for one in own]
        label = None if run in labelled else names[run]
        labelled.add(run)
        axes.plot(updates, values, color=_colour(runs, run), marker="o", markersize=3, linewidth=1.2, label=label)
    axes.axhline(found.logged_value, color=GREY, linestyle="--", linewidth=1, label="the data's own")
    axes.set_xlabel("updates of the policy", fontsize=9)
    axes.set_ylabel(f"estimate J (discount {found.config.discount:g})", fontsize=9)
    tidy(axes)


def _against_returns(axes: Axes, played: Sequence[Estimated], runs: Sequence[str]) -> None:
    for one in played:
        score = np.array(one.policy.score, float)
        axes.plot(score, one.worth, "o", color=_colour(runs, one.policy.run), markersize=4, alpha=0.8)
    axes.set_xlabel("return that was played (undiscounted mean of the run's evaluation)", fontsize=9)
    axes.set_ylabel("estimate J", fontsize=9)
    order = ranking(played)
    if order is not None:
        axes.set_title(f"rank correlation {order.correlation:.2f} of {order.policies} policies", fontsize=9, color=INK)
    tidy(axes)
