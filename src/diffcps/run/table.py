"""The scores of a run as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from diffcps.evaluation.scores import mean_and_std_over_members
from diffcps.tasks.references import normalised_score

KINDS = ("last", "best", "mean_of_last", "offline_selected")
CHOSEN = ("best", "offline_selected")
"""Scores whose evaluation is chosen among all: the table says which one it was."""
EVALUATION_COLUMNS = ("member", "seed", "updates", "score", "std", "normalised", "success", "returns", "lengths")
EXPLANATION = (
    "Return (normalised score). best: the evaluation with the highest return, chosen by asking the environment; "
    "offline-selected: the one with the lowest selection/loss, chosen without it; at: after how many updates."
)


def run_table(summary: Mapping[str, Any]) -> Table:
    """A run's summary as a rich table: a row per member; with several seeds, mean ± std over them per combination.

    `summary` is what `diffcps.run.train.train` returns and `summary.json` holds.
    """
    members = summary["members"]
    swept = [name for name in members[0] if name not in ("member", "seed", *KINDS)]
    kinds = [kind for kind in KINDS if any(member.get(kind) for member in members)]

    title = f"{summary['algorithm']} on {summary['env'] or 'no environment'}, {summary['updates']:,} updates"
    caption = EXPLANATION if kinds else "No scores: the run has no environment, or was not evaluated."
    if kinds and summary.get("data_return") is not None:
        reference = summary["reference"]
        mean = summary["data_return"]
        normalised = None if reference is None else float(normalised_score(mean, tuple(reference)))
        title += f"; mean return of the data: {score_words(mean, normalised)}"
    table = Table(title=Text(title), title_justify="left", caption=Text(caption), caption_justify="left", min_width=60)
    table.box, table.pad_edge, table.collapse_padding = box.SIMPLE, False, True
    for name in (*swept, "seed"):
        table.add_column(Text(name))
    for kind in kinds:
        table.add_column(_heading(kind, members), justify="right")
        if kind in CHOSEN:
            table.add_column("at", justify="right", style="dim")

    combinations: dict[tuple[float, ...], list[Mapping[str, Any]]] = {}
    for member in members:
        combinations.setdefault(tuple(member[name] for name in swept), []).append(member)
    for combination, own in combinations.items():
        values = [f"{float(value):g}" for value in combination]
        for member in own:
            cells = [cell for kind in kinds for cell in _cells(kind, member.get(kind), summary["updates"])]
            table.add_row(*values, str(member["seed"]), *cells)
        if len(own) > 1:
            cells = [cell for kind in kinds for cell in _mean_cells(kind, [member.get(kind) for member in own])]
            table.add_row(*values, "mean ± std", *cells, style="bold")
            table.add_section()
    return table


def evaluation_table(result: Mapping[str, Any]) -> Table:
    """What `diffcps.run.policy.evaluate` returns, as a rich table, a row per member."""
    title = (
        f"{result['algorithm']} in {result['env']}, checkpoint {result['checkpoint']}, {result['episodes']} episodes "
        f"from seed {result['seed']}"
    )
    members = result["members"]
    swept = [name for name in members[0] if name not in EVALUATION_COLUMNS]
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
    success = ("success",) if members[0].get("success") is not None else ()
    for name in (*swept, "seed", "updates", "return", "std over episodes", "normalised", *success):
        table.add_column(Text(name), justify="right")
    for row in members:
        normalised = "–" if row["normalised"] is None else f"{row['normalised']:.1f}"
        words = [number_words(row["score"]), f"{row['std']:.3g}", normalised, *(f"{row[name]:.3f}" for name in success)]
        table.add_row(*(f"{float(row[name]):g}" for name in swept), str(row["seed"]), f"{row['updates']:,}", *words)
    return table


def score_words(score: float, normalised: float | None) -> str:
    """A return and, where it is known, its normalised score in brackets: `3012 (93.1)`."""
    return number_words(score) if normalised is None else f"{number_words(score)} ({normalised:.1f})"


def number_words(value: float) -> str:
    """Four digits; all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _heading(kind: str, members: Sequence[Mapping[str, Any]]) -> str:
    if kind == "mean_of_last":
        return f"mean of\nlast {max(len(member[kind]['updates']) for member in members if member.get(kind))}"
    return kind.replace("_", "-\n")


def _cells(kind: str, score: Mapping[str, Any] | None, updates: int) -> list[str]:
    if score is None:
        return ["–", ""] if kind in CHOSEN else ["–"]
    words = score_words(score["score"], score["normalised"])
    at = _short(score["updates"][-1])
    if kind in CHOSEN:
        return [words, at]
    return [words if score["updates"][-1] == updates else f"{words} at {at}"]  # the member stopped early


def _mean_cells(kind: str, scores: Sequence[Mapping[str, Any] | None]) -> list[str]:
    known = [score for score in scores if score is not None]
    if not known:
        return _cells(kind, None, 0)
    mean, std = mean_and_std_over_members([score["score"] for score in known])
    words = f"{number_words(float(mean))} ± {std:.3g}"
    if known[0]["normalised"] is not None:
        mean, std = mean_and_std_over_members([score["normalised"] for score in known])
        words += f"\n({mean:.1f} ± {std:.1f})"
    if len(known) < len(scores):
        words += f"\n{len(known)} of {len(scores)} seeds"
    return [words, ""] if kind in CHOSEN else [words]


def _short(updates: int) -> str:
    return f"{updates / 1000:g}k" if updates >= 1000 and updates % 100 == 0 else str(updates)
