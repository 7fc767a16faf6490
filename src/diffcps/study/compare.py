"""What a study compares, as tables: a row for each method, variant and swept value, a column for each set of data.

A number is the mean over seeds by one protocol, which says which of a run's evaluations count. What is not finished has
no number, and a mean over fewer seeds or sets of data than planned says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple, cast

from diffcps.evaluation.scores import four_scores, mean_and_std_over_members
from diffcps.evaluation.statistics import Estimate, difference_from
from diffcps.study.plan import AVERAGE, Cell, Final, Study
from diffcps.study.published import Number, Published, Unit
from diffcps.study.results import Origin, Result
from diffcps.study.run import Work
from diffcps.tasks.catalogue import catalogue
from diffcps.types import UserError

LAST_K = 5
"""Evaluations in the mean of the last ones."""
BOLD_WITHIN = 0.03
"""Means that are so near to the best one, as a share of its size, are bold (the rule of arXiv:2310.05333)."""
DATA_LABEL = "the data's mean return"
NOT_PLANNED = "not in the plan"

SHA_DIGITS = 12
"""Of a hash in a remark."""

Kind = Literal["last", "best", "mean_of_last", "offline_selected", "final"]


class Protocol(NamedTuple):
    """Which evaluations of a run count."""

    kind: Kind
    acting: str | None
    """Of new episodes: the rule by which actions are chosen; None: each method's own."""
    title: str
    explanation: str

    @property
    def name(self) -> str:
        """A word for it in files."""
        return self.kind if self.acting is None else f"{self.kind}-{self.acting}"


class Trial(NamedTuple):
    """A method with one combination of varied and swept values on one set of data: a member for each seed."""

    label: str
    """The name of its row, the same on all data."""
    work: Work
    values: Mapping[str, object]
    """The varied and swept ones."""
    results: tuple[Result, ...]

    @property
    def cell(self) -> Cell:
        """The run that it is a part of."""
        return self.work.cell

    @property
    def data(self) -> str:
        """Name of the data in the plan."""
        return self.work.cell.data

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of the plan."""
        return self.cell.request.settings.seeds

    @property
    def updates(self) -> int:
        """Those of the plan."""
        return self.cell.request.settings.updates

    @property
    def own_rule(self) -> str | None:
        """How it acts by itself; None where it has one way only."""
        return _own_rule(self.cell)

    @property
    def training(self) -> list[Result]:
        """The evaluations in the course of the run."""
        return [row for row in self.results if row.protocol == "training"]

    @property
    def update(self) -> int:
        """Of the last evaluation so far."""
        return max((row.update for row in self.training), default=0)


class Column(NamedTuple):
    """A set of data."""

    data: str
    unit: Unit
    group: str = AVERAGE
    stand_in: str | None = None
    """Where it is another file than the benchmark's: which task it stands for."""


class Comparison(NamedTuple):
    """A published number, and ours minus it (None where there is none of ours)."""

    number: Number
    difference: Estimate | None


class Entry(NamedTuple):
    """A number of a table, or why there is none."""

    mean: float | None
    deviation: float | None
    """Over seeds, division by n; None for one seed."""
    scores: Mapping[int, float]
    """By seed."""
    planned: int
    """Seeds of the plan; 0 where a number is of no seeds, as that of the data."""
    notes: tuple[str, ...]
    """What must be known of the number, or why there is none."""
    published: Comparison | None = None
    is_bold: bool = False


class Average(NamedTuple):
    """Over the sets of data of a group that have normalised scores, all of the same weight."""

    group: str
    mean: float | None
    deviation: float | None
    """Over seeds, of a seed's average; None where the data have not the same seeds, or one."""
    columns: int
    """Over so many sets of data."""
    notes: tuple[str, ...]
    published: Comparison | None = None
    is_bold: bool = False


class Row(NamedTuple):
    """A label with an entry for each column."""

    label: str
    entries: tuple[Entry, ...]
    averages: tuple[Average, ...]
    """One for each group of the table."""
    is_compared: bool = True
    """False for numbers that stand beside those of the study, such as the data's: they are never bold."""

    @property
    def seeds(self) -> str:
        """The number of seeds of the plan: "5", or "3 to 5" where it differs between data."""
        return span_text(entry.planned for entry in self.entries if entry.planned)


class ScoreTable(NamedTuple):
    """All scores by one protocol."""

    protocol: Protocol
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of data over which there are averages."""
        return _groups(self.columns)


# --- Rows and columns ---


def trials_of(work: Sequence[Work], results: Sequence[Result]) -> list[Trial]:
    """Everything that the plan compares, entry by entry, with what there is of it.

    Raises `UserError` where two of them would have one name.
    """
    found: list[Trial] = []
    of_runs: dict[str, list[Result]] = {}
    for row in results:
        of_runs.setdefault(row.origin.run, []).append(row)
    for one in work:
        own = [row for row in of_runs.get(one.cell.name, []) if not _is_further(row, one.cell)]
        for row in one.cell.rows:
            of_row = tuple(result for result in own if result.member in row.members)
            found.append(Trial(row.label, one, row.values, of_row))
    names = [(trial.label, trial.data) for trial in found]
    for label, data in names:
        if names.count((label, data)) > 1:
            raise UserError(f"two rows of {data} would have the name {label}: give the tables of the plan other names")
    entries = list(dict.fromkeys(trial.cell.entry for trial in found))
    return sorted(found, key=lambda trial: entries.index(trial.cell.entry))


def labels_of(trials: Sequence[Trial]) -> list[str]:
    """The rows of all tables, in their order."""
    return list(dict.fromkeys(trial.label for trial in trials))


def columns_of(trials: Sequence[Trial], kind: Kind = "last") -> list[Column]:
    """All data of the plan; the unit is the normalised score where every score has one.

    Data without any score yet have the unit of the others. New episodes are scored by success where the plan says so.
    """
    units: dict[str, Unit | None] = {}
    for data in dict.fromkeys(trial.data for trial in trials):
        own = [trial for trial in trials if trial.data == data]
        rows = [row for trial in own for row in trial.results]
        scored = [row for row in rows if row.score is not None]
        if kind == "final" and own[0].cell.of_data.by_success:
            units[data] = "success"
        elif scored:
            units[data] = "normalised" if all(row.normalised is not None for row in scored) else "return"
        else:
            units[data] = "return" if any(row.origin.environment is None for row in rows) else None
    default: Unit = "normalised" if "normalised" in units.values() else "return"
    return [_column(data, unit or default, trials) for data, unit in units.items()]


def _column(data: str, unit: Unit, trials: Sequence[Trial]) -> Column:
    cell = next(trial.cell for trial in trials if trial.data == data)
    task, found = cell.request.task, {origin.dataset_sha256 for origin in _origins(trials, data)}
    own_file = task is not None and cell.request.source != task and found != {catalogue()[task].sha256}
    return Column(data, unit, cell.of_data.group or AVERAGE, task if own_file else None)


def _origins(trials: Sequence[Trial], data: str) -> list[Origin]:
    return [row.origin for trial in trials if trial.data == data for row in trial.results]


def in_unit(row: Result, unit: Unit) -> float | None:
    """The score of a result."""
    return {"normalised": row.normalised, "return": row.score, "success": row.success_at_last_step}[unit]


def span_text(numbers: Iterable[int]) -> str:
    """ "5", or "3 to 5" where they differ."""
    known = sorted(set(numbers))
    return " to ".join(f"{number:,}" for number in dict.fromkeys([*known[:1], *known[-1:]]))


# --- Protocols ---


def protocols_of(study: Study) -> list[Protocol]:
    """All that the plan asks for."""
    settings = [cell.request.settings for cell in study.cells]
    episodes = f"{span_text(each.episodes for each in settings)} episodes per seed"
    found = [
        Protocol(
            "last",
            None,
            "Last",
            f"The evaluation after the last update ({span_text(each.updates for each in settings)}): {episodes}.",
        ),
        Protocol(
            "best",
            None,
            "Best",
            f"The evaluation of each seed with the highest mean return: {episodes}. It was chosen by asking the "
            "environment, on the same episodes that give the score, and grows with the number of evaluations (every "
            f"{span_text(each.eval_every for each in settings)} updates) and with their noise.",
        ),
        Protocol(
            "mean_of_last",
            None,
            "Mean of the last five",
            f"The mean of each seed's last five evaluations, fewer where there are fewer: {episodes} and evaluation.",
        ),
        Protocol(
            "offline_selected",
            None,
            "Offline-selected",
            f"The evaluation of each seed with the lowest selection/loss, chosen without the environment: {episodes}.",
        ),
    ]
    return found if study.final is None else found + _final_protocols(study, study.final)


def _final_protocols(study: Study, final: Final) -> list[Protocol]:
    chosen = {
        "last": "the last checkpoint",
        "best": "the checkpoint with the highest mean return (chosen by asking the environment, on other episodes)",
        "selected": "the checkpoint with the lowest selection/loss",
    }
    last_start = final.seed + final.episodes - 1
    played = (
        f"{final.episodes:,} new episodes per seed, from start seeds {final.seed} to {last_start}, with "
        f"{chosen[final.checkpoint]}"
    )
    has_choice = any(_own_rule(cell) is not None for cell in study.cells)
    further = final.also_act if has_choice else ()
    return [
        Protocol("final", None, "New episodes", f"{played}; each method acts by its own rule."),
        *(Protocol("final", rule, f"New episodes by {rule}", f"{played}; acting by {rule}.") for rule in further),
    ]


def _is_further(row: Result, cell: Cell) -> bool:
    """Whether it is an evaluation in the course of a run by another rule than the method's own: of those no table is
    made, they stand in results.parquet."""
    return row.protocol == "training" and row.acting not in (None, _own_rule(cell))


def _own_rule(cell: Cell) -> str | None:
    return getattr(cell.request.config, "action_choice", None)


# --- Tables ---


def table_of(
    protocol: Protocol, trials: Sequence[Trial], columns: Sequence[Column], published: Published | None = None
) -> ScoreTable:
    """The scores of all rows by one protocol, below the mean return of the data, with published ones beside them."""
    taking_part = [trial for trial in trials if protocol.acting is None or trial.own_rule is not None]
    rows = [_row_of_data(trials, columns)]
    for label in labels_of(taking_part):
        own = {trial.data: trial for trial in taking_part if trial.label == label}
        entries = [_entry(protocol, own.get(column.data), column.unit) for column in columns]
        rows.append(Row(label, tuple(entries), _averages(entries, columns)))
    rows = _with_bold(rows, columns)
    if published is not None:
        rows = [_with_published(row, columns, published) for row in rows]
    return ScoreTable(protocol, tuple(columns), tuple(rows), tuple(_remarks(protocol, trials, columns, published)))


def _entry(protocol: Protocol, trial: Trial | None, unit: Unit) -> Entry:
    if trial is None:
        return Entry(None, None, {}, 0, (NOT_PLANNED,))
    missing = _why_missing(protocol, trial)
    if missing:
        return Entry(None, None, {}, len(trial.seeds), (missing,))
    scores: dict[int, float] = {}
    notes: list[str] = []
    for seed in trial.seeds:
        used = _used(protocol, trial, seed)
        values = [value for row in used if (value := in_unit(row, unit)) is not None]
        if values:
            scores[seed] = sum(values) / len(values)
            notes += _notes(protocol, trial, seed, used)
    if not scores:
        return Entry(None, None, {}, len(trial.seeds), (_why_no_score(protocol, trial),))
    if len(scores) < len(trial.seeds):
        notes.insert(0, f"{len(scores)} of {len(trial.seeds)} seeds")
    return _entry_of(scores, len(trial.seeds), [*notes, *_unmet_bounds(trial)])


def _entry_of(scores: Mapping[int, float], planned: int, notes: Sequence[str]) -> Entry:
    mean, deviation = mean_and_std_over_members(list(scores.values()))
    return Entry(float(mean), float(deviation) if len(scores) > 1 else None, scores, planned, tuple(notes))


def _why_missing(protocol: Protocol, trial: Trial) -> str | None:
    """Why there can be no number yet."""
    if trial.update < trial.updates:
        if trial.work.state == "failed":
            return "failed"
        if not trial.results and trial.work.state == "waiting":
            return "not begun"
        return f"unfinished: {trial.update:,} of {trial.updates:,} updates"
    if all(row.origin.environment is None for row in trial.results):
        return "no environment"
    return None


def _why_no_score(protocol: Protocol, trial: Trial) -> str:
    """Why there is none although the run is trained."""
    if protocol.kind == "final":
        return "no new episodes yet"
    if protocol.kind == "offline_selected" and any(row.score is not None for row in trial.training):
        return "no finite selection/loss"
    return "the episodes could not be played"


def _used(protocol: Protocol, trial: Trial, seed: int) -> list[Result]:
    """The evaluations of a seed that count; none where there are none."""
    own = [row for row in trial.results if row.seed == seed and row.score is not None]
    if protocol.kind == "final":
        acting = trial.own_rule if protocol.acting is None else protocol.acting
        return [row for row in own if row.protocol == "final" and row.acting == acting]
    own = [row for row in own if row.protocol == "training"]
    updates = [row.update for row in own]
    scores = four_scores(
        updates, [cast(float, row.score) for row in own], [row.selection_loss for row in own], k=LAST_K
    )
    score = None if scores is None else getattr(scores, protocol.kind)
    return [] if score is None else [row for row in own if row.update in score.updates]


def _notes(protocol: Protocol, trial: Trial, seed: int, used: Sequence[Result]) -> list[str]:
    """What is unusual about the evaluations of a seed."""
    ended = max((row.update for row in trial.training if row.seed == seed), default=None)
    if ended is None:
        return [f"seed {seed} stopped before its first evaluation"]
    if ended < trial.updates:
        return [f"seed {seed} stopped after {ended:,} updates"]
    if protocol.kind in ("last", "mean_of_last") and used[-1].update < trial.updates:
        return [f"seed {seed} has no score after {used[-1].update:,} updates"]
    return []


def _unmet_bounds(trial: Trial) -> list[str]:
    """Of a method that keeps a bound, which its runs did not meet: the score is then that of another problem."""
    seeds: dict[str, set[int]] = {}
    for row in trial.results:
        if row.unmet_bound is not None:
            seeds.setdefault(row.unmet_bound, set()).add(row.seed)
    return [f"{bound} not met by {len(found)} of {len(trial.seeds)} seeds" for bound, found in seeds.items()]


def _row_of_data(trials: Sequence[Trial], columns: Sequence[Column]) -> Row:
    entries = [_entry_of_data(trials, column) for column in columns]
    return Row(DATA_LABEL, tuple(entries), _averages(entries, columns), is_compared=False)


def _entry_of_data(trials: Sequence[Trial], column: Column) -> Entry:
    """What a policy has to beat. Runs whose rewards were transformed do not know it, and others of the data may."""
    origins = [row.origin for trial in trials if trial.data == column.data for row in trial.results]
    found = [origin.data_normalised if column.unit == "normalised" else origin.data_return for origin in origins]
    known = [value for value in dict.fromkeys(found) if value is not None]
    if not known:
        return Entry(None, None, {}, 0, ("not known",))
    return Entry(known[0], None, {}, 0, ("differs between runs",) if len(known) > 1 else ())


def _groups(columns: Sequence[Column]) -> tuple[str, ...]:
    """Those with two or more sets of data that have normalised scores."""
    of_columns = [column.group for column in columns if column.unit == "normalised"]
    return tuple(group for group in dict.fromkeys(of_columns) if of_columns.count(group) > 1)


def _is_pooled(column: Column, group: str) -> bool:
    return column.unit == "normalised" and column.group == group


def _averages(entries: Sequence[Entry], columns: Sequence[Column]) -> tuple[Average, ...]:
    return tuple(_average(group, entries, columns) for group in _groups(columns))


def _average(group: str, entries: Sequence[Entry], columns: Sequence[Column]) -> Average:
    all_of_them = [entry for entry, column in zip(entries, columns, strict=True) if _is_pooled(column, group)]
    known = [entry for entry in all_of_them if entry.mean is not None]
    if not known:
        return Average(group, None, None, 0, ())
    notes = [f"{len(known)} of {len(all_of_them)} data"] if len(known) < len(all_of_them) else []
    if any(len(entry.scores) < entry.planned for entry in known):
        notes.append("fewer seeds")
    mean = sum(cast(float, entry.mean) for entry in known) / len(known)
    by_seed = _by_seed(known)
    deviation = None if by_seed is None else float(mean_and_std_over_members(by_seed)[1])
    return Average(group, mean, deviation, len(known), tuple(notes))


def _by_seed(entries: Sequence[Entry]) -> list[float] | None:
    """The average of each seed; None where the data have not the same seeds, or one."""
    seeds = entries[0].scores.keys()
    if len(seeds) < 2 or any(entry.scores.keys() != seeds for entry in entries):
        return None
    return [sum(entry.scores[seed] for entry in entries) / len(entries) for seed in seeds]


def _with_bold(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """Marks what is near to the best of its column. Averages over some of the data are not compared."""
    compared = [row for row in rows if row.is_compared]
    complete = {group: sum(_is_pooled(column, group) for column in columns) for group in _groups(columns)}
    enough = [_is_near_the_best(row.entries[number].mean for row in compared) for number in range(len(columns))]
    near = [
        _is_near_the_best(row.averages[number].mean for row in compared if row.averages[number].columns == count)
        for number, count in enumerate(complete.values())
    ]
    found: list[Row] = []
    for row in rows:
        if row.is_compared:
            entries = [
                entry._replace(is_bold=is_near(entry.mean)) for entry, is_near in zip(row.entries, enough, strict=True)
            ]
            averages = [
                average._replace(is_bold=average.columns == complete[average.group] and is_near(average.mean))
                for average, is_near in zip(row.averages, near, strict=True)
            ]
            row = row._replace(entries=tuple(entries), averages=tuple(averages))
        found.append(row)
    return found


def _with_published(row: Row, columns: Sequence[Column], published: Published) -> Row:
    """The published numbers that have the unit of their column, with the differences to ours."""
    scores, of_groups = published.scores.get(row.label, {}), published.averages.get(row.label, {})
    entries = [
        entry._replace(published=_beside(scores[column.data], entry.mean, list(entry.scores.values())))
        if column.unit == published.unit and column.data in scores
        else entry
        for entry, column in zip(row.entries, columns, strict=True)
    ]
    averages: list[Average] = []
    for average in row.averages:
        number = of_groups.get(average.group)
        pooled = [
            entry for entry, column in zip(row.entries, columns, strict=True) if _is_pooled(column, average.group)
        ]
        if number is not None and published.unit == "normalised":
            complete = average.columns == len(pooled)  # an average over other data is another number
            by_seed = _by_seed(pooled) if complete else None
            average = average._replace(published=_beside(number, average.mean if complete else None, by_seed or []))
        averages.append(average)
    return row._replace(entries=tuple(entries), averages=tuple(averages))


def _beside(number: Number, mean: float | None, scores: Sequence[float]) -> Comparison:
    if mean is None:
        return Comparison(number, None)
    return Comparison(number, difference_from(number.mean, scores or [mean]))


def _is_near_the_best(means: Iterable[float | None]) -> Callable[[float | None], bool]:
    """Of numbers of which there are two or more: of one alone nothing can be said."""
    known = [mean for mean in means if mean is not None]
    if len(known) < 2:
        return lambda mean: False
    least = max(known) - BOLD_WITHIN * abs(max(known))
    return lambda mean: mean is not None and mean >= least


def _remarks(
    protocol: Protocol, trials: Sequence[Trial], columns: Sequence[Column], published: Published | None
) -> list[str]:
    """What must be said of a table as a whole."""
    own = "; ".join(_stand_in_text(column, trials) for column in columns if column.stand_in is not None)
    remarks = [f"Not the benchmark's data, but own files, with their SHA-256: {own}."] if own else []
    if published is not None and any(column.unit == published.unit for column in columns):
        remarks.append(
            f"Published: {published.source} ({published.protocol}). Differences are ours minus published, with a 95 % "
            "interval (Student's t) of our mean over seeds; the published number is taken as exact."
        )
    groups = [group for group in _groups(columns) if group != AVERAGE]
    normalised = [column.data for column in columns if column.unit == "normalised"]
    if groups:
        of_groups = {group: [column.data for column in columns if _is_pooled(column, group)] for group in groups}
        remarks += [f"{group}: {', '.join(data)}." for group, data in of_groups.items() if len(data) < len(columns)]
    elif 1 < len(normalised) < len(columns):
        remarks.append(f"The average is over {', '.join(normalised)}: the other data have no normalised scores.")
    if len(normalised) < 2 <= len(columns):
        remarks.append(
            "There is no average over the data: without normalised scores their returns have no common unit."
        )
    return remarks + _remarks_on_acting(protocol, trials)


def _stand_in_text(column: Column, trials: Sequence[Trial]) -> str:
    """Numbers of other files must not pass for those of the benchmark's."""
    known = {(origin.dataset, origin.dataset_sha256) for origin in _origins(trials, column.data)}
    files = "; ".join(
        f"{', '.join(PurePath(name).name for name in source.split(','))} ({sha256[:SHA_DIGITS]})"
        for source, sha256 in sorted(known)
    )
    return f"{column.data} for {column.stand_in}: {files or 'no run has read it yet'}"


def _remarks_on_acting(protocol: Protocol, trials: Sequence[Trial]) -> list[str]:
    if protocol.kind != "final":
        return []
    names: dict[str | None, list[str]] = {}
    for trial in trials:
        of_entry = {other.own_rule for other in trials if other.cell.entry == trial.cell.entry}
        names.setdefault(trial.own_rule, []).append(trial.cell.entry if len(of_entry) == 1 else trial.label)
    by_rule = {rule: ", ".join(dict.fromkeys(found)) for rule, found in names.items()}
    without = by_rule.pop(None, None)
    if protocol.acting is not None:
        return [] if without is None else [f"Methods with one way to act are not in this table: {without}."]
    one_way = [] if without is None else [f"one way to act: {without}"]
    return [f"Own rules: {'; '.join([*(f'{rule}: {found}' for rule, found in by_rule.items()), *one_way])}."]
