"""The scores of runs as tables: in the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from diffcps.algorithms import ALGORITHMS
from diffcps.evaluation.scores import Score, mean_and_std_over_members
from diffcps.records.folder import RunFolder
from diffcps.records.record import SCORE_KINDS, Evaluation, MemberScores, Reference, RunEvaluation, Summary
from diffcps.run.bounds import unmet_line
from diffcps.tasks.references import normalised_score
from diffcps.types import UserError

CHOSEN = ("best", "offline_selected")
"""Scores whose evaluation is chosen among all: the table says which one it was."""
EXPLANATION = (
    "Return (normalised score). best: the evaluation with the highest return, chosen by asking the environment; "
    "offline-selected: the one with the lowest selection/loss, chosen without it; at: after how many updates."
)
UNCHOSEN = ("last", "mean_of_last")
"""Scores that are shown of further rules, too; the others rest on a choice among evaluations."""
FURTHER_EXPLANATION = (
    " The last columns have the same evaluations by further rules to act by, which have no part in any choice."
)

SUCCESS_EXPLANATION = (
    "success: share of the episodes that the environment calls a success at the last step, and at any step."
)


def run_table(summary: Summary) -> Table:
    """A run's summary as a rich table: a row per member; with several seeds, mean ± std over them per combination."""
    members = summary.members
    swept = list(members[0].member.swept)
    kinds = [kind for kind in SCORE_KINDS if any(_score(row, kind) for row in members)]

    title = f"{summary.algorithm} on {summary.environment or 'no environment'}, {summary.updates:,} updates"
    selected = not kinds and any(row.selected for row in members)
    caption = EXPLANATION if kinds else _why_no_scores(summary, selected)
    if further_rules(summary):
        caption += FURTHER_EXPLANATION
    if kinds and summary.data_return is not None:
        title += f"; mean return of the data: {_return_text(summary.data_return, summary.reference)}"
    table = Table(title=Text(title), title_justify="left", caption=Text(caption), caption_justify="left", min_width=60)
    table.box, table.pad_edge, table.collapse_padding = box.SIMPLE, False, True
    for name in (*swept, "seed"):
        table.add_column(Text(name))
    for kind in kinds:
        table.add_column(_heading(kind, members), justify="right")
        if kind in CHOSEN:
            table.add_column("at", justify="right", style="dim")
    further = [(rule, kind) for rule in further_rules(summary) for kind in UNCHOSEN]
    for rule, kind in further:
        table.add_column(f"{_heading(kind, members)}\n{rule}", justify="right", overflow="fold")
    if selected:
        table.add_column("selection/loss", justify="right")
        table.add_column("at", justify="right", style="dim")

    combinations: dict[tuple[float, ...], list[MemberScores]] = {}
    for row in members:
        combinations.setdefault(tuple(row.member.swept.values()), []).append(row)
    for combination, own in combinations.items():
        values = [f"{value:g}" for value in combination]
        for row in own:
            cells = [cell for kind in kinds for cell in _cells(kind, _score(row, kind), summary.updates)]
            cells += [cell for rule, kind in further for cell in _cells(kind, _score(row, kind, rule), summary.updates)]
            table.add_row(*values, str(row.member.seed), *cells, *(_selected_cells(row) if selected else []))
        if len(own) > 1:
            cells = [cell for kind in kinds for cell in _mean_cells(kind, [_score(row, kind) for row in own])]
            for rule, kind in further:
                cells += _mean_cells(kind, [_score(row, kind, rule) for row in own])
            table.add_row(*values, "mean ± std", *cells, *(_mean_selected_cells(own) if selected else []), style="bold")
            table.add_section()
    return table


def evaluation_table(result: RunEvaluation) -> Table:
    """New episodes with the policies of a run, as a rich table, a row per member."""
    title = (
        f"{result.algorithm} in {result.environment}, checkpoint {result.checkpoint}, {result.episodes} episodes "
        f"from seed {result.seed}"
    )
    told = result.members[0].success_at_last_step is not None
    success = ("success,\nlast step", "success,\nany step") if told else ()
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.caption, table.caption_justify = Text(SUCCESS_EXPLANATION) if told else None, "left"
    swept = result.members[0].member.swept
    for name in (*swept, "seed", "updates", "return", "std over\nepisodes", "normalised", *success):
        table.add_column(Text(name), justify="right")
    for row in result.members:
        cells = [number_text(row.score), f"{row.std:.3g}", "–" if row.normalised is None else f"{row.normalised:.1f}"]
        cells += [f"{share:.3f}" for share in (row.success_at_last_step, row.success_at_any_step) if share is not None]
        values = (f"{value:g}" for value in row.member.swept.values())
        table.add_row(*values, str(row.member.seed), f"{row.updates:,}", *cells)
    return table


def score_text(score: float, normalised: float | None) -> str:
    """A return and, where it is known, its normalised score in brackets: `3012 (93.1)`."""
    return number_text(score) if normalised is None else f"{number_text(score)} ({normalised:.1f})"


def number_text(value: float) -> str:
    """Four digits; all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _return_text(value: float, reference: Reference | None) -> str:
    return score_text(value, None if reference is None else float(normalised_score(value, reference)))


def further_rules(summary: Summary) -> list[str]:
    """The rules to act by whose scores stand beside those of the run's own."""
    return list(dict.fromkeys(rule for row in summary.members for rule in row.also))


def _score(row: MemberScores, kind: str, rule: str | None = None) -> Score | None:
    """By the run's own rule, or by a further one."""
    scores = row.scores if rule is None else row.also.get(rule)
    return None if scores is None else getattr(scores, kind)


def _why_no_scores(summary: Summary, selected: bool) -> str:
    if summary.failed_evaluations:
        text = "No scores: the episodes could not be played."
    else:
        text = "No scores: the run has no environment, or was not evaluated."
    if selected:
        text += " selection/loss: its lowest value, and after how many updates; saved as checkpoint selected."
    return text


def _selected_cells(row: MemberScores) -> list[str]:
    return ["–", ""] if row.selected is None else [number_text(row.selected.loss), _short(row.selected.update)]


def _mean_selected_cells(rows: Sequence[MemberScores]) -> list[str]:
    known = [row.selected.loss for row in rows if row.selected is not None]
    if not known:
        return ["–", ""]
    mean, std = mean_and_std_over_members(known)
    return [f"{number_text(float(mean))} ± {std:.3g}", ""]


def _heading(kind: str, members: Sequence[MemberScores]) -> str:
    if kind == "mean_of_last":
        return f"mean of\nlast {max(len(row.scores.mean_of_last.updates) for row in members if row.scores)}"
    return kind.replace("_", "-\n")


def _cells(kind: str, score: Score | None, updates: int) -> list[str]:
    if score is None:
        return ["–", ""] if kind in CHOSEN else ["–"]
    text = score_text(score.score, score.normalised)
    at = _short(score.updates[-1])
    if kind in CHOSEN:
        return [text, at]
    return [text if score.updates[-1] == updates else f"{text} at {at}"]  # the member stopped early


def _mean_cells(kind: str, scores: Sequence[Score | None]) -> list[str]:
    known = [score for score in scores if score is not None]
    if not known:
        return _cells(kind, None, 0)
    mean, std = mean_and_std_over_members([score.score for score in known])
    text = f"{number_text(float(mean))} ± {std:.3g}"
    normalised = [score.normalised for score in known if score.normalised is not None]
    if normalised:
        mean, std = mean_and_std_over_members(normalised)
        text += f"\n({mean:.1f} ± {std:.1f})"
    if len(known) < len(scores):
        text += f"\n{len(known)} of {len(scores)} seeds"
    return [text, ""] if kind in CHOSEN else [text]


def _short(updates: int) -> str:
    return f"{updates / 1000:g}k" if updates >= 1000 and updates % 100 == 0 else str(updates)


# --- Markdown ---


def markdown(folders: Sequence[RunFolder]) -> str:
    """One run as a table of its evaluations, several as a row each. Raises `UserError` where one was never scored."""
    if len(folders) == 1:
        return _markdown_of_evaluations(folders[0])
    lines = [_markdown_row(["method", "updates", *SCORE_KINDS]), "|" + "---|" * (2 + len(SCORE_KINDS))]
    for folder in folders:
        summary = folder.read_summary()
        for rule in (None, *further_rules(summary)):
            cells = [_spread_text(_scores_of(folder, summary, kind, rule), summary.reference) for kind in SCORE_KINDS]
            name = summary.algorithm if rule is None else f"{summary.algorithm}, {rule}"
            lines.append(_markdown_row([name, f"{summary.updates:,}", *cells]))
    return "\n".join(lines)


def _markdown_of_evaluations(folder: RunFolder) -> str:
    """Return, normalised score and the method's main measures at each evaluation: mean ± deviation over the members."""
    record, summary = folder.read_record(), folder.read_summary()
    evaluations = [row for row in folder.read_evaluations(record.members) if row.score is not None]
    if not evaluations:
        raise UserError(f"{folder.path}: holds no scores; train with an environment (--env) to get some")
    diagnosed = {
        name: metric.title
        for name, metric in ALGORITHMS[record.algorithm].METRICS.items()
        if metric.symbol and name in evaluations[0].diagnosis
    }
    rules = further_rules(summary)
    headings = ["updates", "members", "return (normalised)", *(f"by {rule}" for rule in rules), *diagnosed.values()]
    lines = [_markdown_row(headings), "|" + "---|" * len(headings)]
    for update in sorted({row.update for row in evaluations}):
        now = [row for row in evaluations if row.update == update]
        measures = [_measure_text(now, name) for name in diagnosed]
        scores = [_spread_text([row.score for row in now if row.score is not None], record.reference)]
        scores += [_spread_text([row.also[rule].score for row in now], record.reference) for rule in rules]
        lines.append(_markdown_row([f"{update:,}", str(len(now)), *scores, *measures]))
    lines.append("")
    for rule in (None, *rules):
        for kind in SCORE_KINDS:
            name = kind if rule is None else f"{kind} by {rule}"
            lines.append(f"- {name}: {_spread_text(_scores_of(folder, summary, kind, rule), record.reference)}")
    if summary.unmet_bounds:
        lines += ["", unmet_line(record, summary.unmet_bounds)]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _scores_of(folder: RunFolder, summary: Summary, kind: str, rule: str | None = None) -> list[float]:
    found = [score.score for row in summary.members if (score := _score(row, kind, rule)) is not None]
    if not found:
        raise UserError(f"{folder.path}: holds no scores; train with an environment (--env) to get some")
    return found


def _spread_text(scores: Sequence[float], reference: Reference | None) -> str:
    text = _mean_text(scores, 0)
    if reference is not None:
        text += f" ({_mean_text(normalised_score(np.asarray(scores), reference).tolist(), 1)})"
    return text


def _measure_text(rows: Sequence[Evaluation], name: str) -> str:
    known = [value for row in rows if (value := row.diagnosis[name]) is not None]
    return _mean_text(known, 3) if known else "–"


def _mean_text(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values):.{digits}f}" if len(values) > 1 else mean
