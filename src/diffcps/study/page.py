"""What the report of a study shows, as records: everything but its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from diffcps.records.fields import values_of
from diffcps.records.folder import RunFolder
from diffcps.records.record import Measurement, RunRecord
from diffcps.run.resolve import given_by
from diffcps.run.table import number_text
from diffcps.study.aggregate import (
    LEVEL,
    RESAMPLES,
    SEED,
    Aggregate,
    Aggregates,
    aggregates_of,
    held_at_best,
)
from diffcps.study.cell import standing
from diffcps.study.charts import Axes, Bar, Level, Line, Style, interval_chart, line_chart, swatch
from diffcps.study.compare import (
    DATA_LABEL,
    Column,
    ScoreTable,
    Trial,
    columns_of,
    labels_of,
    protocols_of,
    span_text,
    table_of,
    trials_of,
)
from diffcps.study.course import Curve, MetricCurves, cost_of, metric_curves, read_measurements, score_curves
from diffcps.study.formats import UNITS
from diffcps.study.plan import Study, value_text
from diffcps.study.results import Result
from diffcps.study.run import Work


class Figure(NamedTuple):
    """A chart and its words."""

    title: str
    svg: str
    caption: str


class Pair(NamedTuple):
    """What a method bounds on one set of data, and its multiplier."""

    title: str
    figures: tuple[Figure, ...]


class Key(NamedTuple):
    """What a row looks like in all charts."""

    number: int
    label: str
    swatch: str


class Link(NamedTuple):
    """To a file of the study's folder."""

    text: str
    target: str


class RunLine(NamedTuple):
    """A run, and how its numbers came about."""

    name: str
    link: Link | None
    """To its folder; None where there is none."""
    files: tuple[Link, ...]
    state: str
    last_line: str
    """Of one that failed."""
    method: str
    preset: str
    given: str
    """What the plan says of the method's fields."""
    reading: str
    """What was said about reading the data, where something was."""
    seeds: str
    members: int
    updates_per_second: str
    hours: str
    device: str
    data_sha256: str
    maker: int | None
    """Number of its `Maker`; None where the run has not begun."""
    command: str


class DataLine(NamedTuple):
    """A set of data as some of the runs have read it."""

    name: str
    source: str
    task: str
    sha256: str
    environment: str
    transitions: str
    data_return: str
    reference: str
    runs: int


class Maker(NamedTuple):
    """By which library, with which packages and on what runs were made."""

    number: int
    commit: str
    device: str
    versions: str
    runs: int


class Page(NamedTuple):
    """The whole report."""

    name: str
    runs_done: int
    command: str
    """That makes the study."""
    tables: tuple[ScoreTable, ...]
    keys: tuple[Key, ...]
    aggregates: Aggregates
    about_aggregates: str
    """Of what they are, or why there are none."""
    intervals: tuple[Figure, ...]
    profile: Figure | None
    pooled_keys: tuple[Key, ...]
    """Those of the profile."""
    curves: tuple[Figure, ...]
    constraints: tuple[Pair, ...]
    constrained_keys: tuple[Key, ...]
    runs: tuple[RunLine, ...]
    data: tuple[DataLine, ...]
    makers: tuple[Maker, ...]


Styles = Mapping[str, Style]
"""By the label of a row."""


def page_of(
    study: Study, work: Sequence[Work], results: Sequence[Result], out: Path, reference: str | None = None
) -> Page:
    """Everything that the folder `out` has of a study. `reference` is the row that others are compared with.

    Raises `UserError` for an unknown row and without the packages of the extra `studies`.
    """
    trials = trials_of(work, results)
    columns = columns_of(trials)
    tables = tuple(
        table_of(protocol, trials, columns_of(trials, protocol.kind), study.published)
        for protocol in protocols_of(study)
    )
    styles = {label: Style(number) for number, label in enumerate(labels_of(trials))}
    aggregates = aggregates_of(_table_to_pool(tables), reference)
    measurements = {one.cell.name: read_measurements(out / one.cell.name) for one in work}
    records = {
        one.cell.name: RunFolder(out / one.cell.name).read_record()
        for one in work
        if RunFolder(out / one.cell.name).config.exists()
    }
    makers = _makers(list(records.values()))
    keys = tuple(Key(style.number, label, swatch(style)) for label, style in styles.items())
    pooled = {row.label for row in aggregates.rows}
    constraints = metric_curves(trials, measurements)
    constrained = {curve.label for metric in constraints for curve in metric.curves}
    return Page(
        name=study.name,
        runs_done=sum(one.state == "done" for one in work),
        command="diffcps study run study.toml --out DIR",
        tables=tables,
        keys=keys,
        aggregates=aggregates,
        about_aggregates=_about(aggregates),
        intervals=tuple(_interval_figures(aggregates, styles)),
        profile=_profile_figure(aggregates, styles),
        pooled_keys=tuple(key for key in keys if key.label in pooled),
        curves=tuple(_score_figures(trials, columns, tables[0], styles)),
        constraints=tuple(_pairs(constraints, styles)),
        constrained_keys=tuple(key for key in keys if key.label in constrained),
        runs=tuple(
            _run_line(study, one, records.get(one.cell.name), measurements[one.cell.name], makers, out) for one in work
        ),
        data=tuple(_data_lines(work, records)),
        makers=tuple(makers),
    )


# --- Over all data ---


def _table_to_pool(tables: Sequence[ScoreTable]) -> ScoreTable:
    """New episodes where the plan has some, else the last evaluations: neither was chosen by its own score."""
    return next((table for table in tables if table.protocol.name == "final"), tables[0])


def _about(aggregates: Aggregates) -> str:
    title, remarks = aggregates.protocol.title.lower(), "; ".join(aggregates.remarks)
    if not aggregates.rows:
        return f"There are no aggregates over the data, intervals or profiles of {title}: {remarks}."
    held = held_at_best(aggregates.fewest_seeds)
    reference = aggregates.reference
    return " ".join(
        [
            f"{aggregates.protocol.title}, normalised scores on {', '.join(aggregates.data)}; {aggregates.seeds} seeds "
            f"on each. {aggregates.protocol.explanation}",
            f"Brackets and bars are {LEVEL:.0%} intervals of a stratified bootstrap ({RESAMPLES:,} resamples, seed "
            f"{SEED}): they speak of other seeds on the same data, not of other data. From few seeds they are too "
            f"narrow: with {aggregates.fewest_seeds} they hold a mean in {held:.0%} of cases at best.",
            *([f"Left out: {remarks}."] if remarks else []),
            f"The others are compared with {reference}."
            if reference is not None
            else "The row that the others were to be compared with is not among them.",
            "The option --reference takes another row.",
        ]
    )


def _interval_figures(aggregates: Aggregates, styles: Styles) -> list[Figure]:
    if not aggregates.rows:
        return []
    seeds = f"{aggregates.seeds} seeds on each of {len(aggregates.data)} data"
    measure = f"{aggregates.protocol.title.lower()}; {seeds}"

    def figure(
        name: str, title: str, x_label: str, rows: Sequence[Bar], caption: str, reference: float | None
    ) -> Figure:
        chart = interval_chart(name, title, f"{caption} {_spoken(rows)}", x_label, rows, reference)
        return Figure(title, chart, caption)

    rows = aggregates.rows
    found = [
        figure(
            "iqm",
            "Interquartile mean (IQM)",
            "normalised score",
            [Bar(row.label, styles[row.label], row.interquartile_mean, 1) for row in rows],
            f"Mean of all runs without the lowest and the highest quarter ({measure}).",
            None,
        ),
        figure(
            "mean",
            "Mean",
            "normalised score",
            [Bar(row.label, styles[row.label], row.mean, 1) for row in rows],
            f"Mean of all runs ({measure}).",
            None,
        ),
    ]
    against = [Bar(row.label, styles[row.label], row.improvement, 2) for row in rows if row.improvement is not None]
    if against:
        found.append(
            figure(
                "improvement",
                f"Probability of improvement over {aggregates.reference}",
                "probability",
                against,
                f"That a run of the method is better than one of {aggregates.reference} on the same data, ties half, "
                f"averaged over the data ({measure}). Dashed: neither is better.",
                0.5,
            )
        )
    return found


def _spoken(bars: Sequence[Bar]) -> str:
    """The numbers of a chart for those who do not see it."""
    return "; ".join(f"{bar.label} {bar.estimate.value:.{bar.digits}f}" for bar in bars)


def _profile_figure(aggregates: Aggregates, styles: Styles) -> Figure | None:
    if not aggregates.rows:
        return None
    title = "Performance profile"
    text = (
        f"Share of all runs with a normalised score above a threshold ({aggregates.protocol.title.lower()}; "
        f"{aggregates.seeds} seeds on each of {len(aggregates.data)} data), with a band for each threshold by itself."
    )
    lines = [_profile_line(row, styles[row.label], aggregates.thresholds.tolist()) for row in aggregates.rows]
    return Figure(title, line_chart("profile", title, text, Axes("normalised score", "share of runs"), lines), text)


def _profile_line(row: Aggregate, style: Style, thresholds: Sequence[float]) -> Line:
    share, band = row.profile
    low, high = (None, None) if band is None else (band.low.tolist(), band.high.tolist())
    return Line(row.label, style, thresholds, share.tolist(), low, high)


# --- Over the updates ---


def _score_figures(
    trials: Sequence[Trial], columns: Sequence[Column], table: ScoreTable, styles: Styles
) -> list[Figure]:
    found: list[Figure] = []
    (data_row,) = (row for row in table.rows if row.label == DATA_LABEL)
    for number, (column, of_data) in enumerate(zip(columns, data_row.entries, strict=True)):
        curves = score_curves(trials, column.data, column.unit)
        if not curves:
            continue
        levels = [] if of_data.mean is None else [Level(DATA_LABEL, of_data.mean, None)]
        dashed = [f"Dashed: {level.label}." for level in levels]
        text = " ".join([_course_text(curves), *dashed, *_ended(curves)])
        axes = Axes("updates", UNITS[column.unit])
        chart = line_chart(f"curve{number}", column.data, text, axes, _lines(curves, styles), levels)
        found.append(Figure(column.data, chart, text))
    return found


def _pairs(metrics: Sequence[MetricCurves], styles: Styles) -> list[Pair]:
    found: dict[str, list[Figure]] = {}
    for number, of in enumerate(metrics):
        found.setdefault(f"{of.method} on {of.data}", []).append(_metric_figure(number, of, styles))
    return [Pair(title, tuple(figures)) for title, figures in found.items()]


def _metric_figure(number: int, of: MetricCurves, styles: Styles) -> Figure:
    name = of.metric.title.replace("$", "")
    levels = [
        Level(f"{of.metric.bound} {bound.value:g}", bound.value, None if bound.label is None else styles[bound.label])
        for bound in of.bounds
    ]
    bounds = ", ".join(value_text(value) for value in dict.fromkeys(bound.value for bound in of.bounds))
    text = " ".join(
        [
            _course_text(of.curves),
            *([f"Dashed: {of.metric.bound} = {bounds}."] if bounds else []),
            *_ended(of.curves),
        ]
    )
    axes = Axes("updates", of.metric.symbol or name, of.is_logarithmic)
    chart = line_chart(f"metric{number}", name, text, axes, _lines(of.curves, styles), levels)
    return Figure(name, chart, text)


def _lines(curves: Sequence[Curve], styles: Styles) -> list[Line]:
    lines: list[Line] = []
    for curve in curves:
        low, high = None, None
        if curve.deviation is not None:
            pairs = list(zip(curve.mean, curve.deviation, strict=True))
            low, high = [mean - deviation for mean, deviation in pairs], [mean + deviation for mean, deviation in pairs]
        lines.append(Line(curve.label, styles[curve.label], list(map(float, curve.updates)), curve.mean, low, high))
    return lines


def _course_text(curves: Sequence[Curve]) -> str:
    """What lines and bands are."""
    seeds = span_text(curve.seeds for curve in curves)
    if all(curve.deviation is None for curve in curves):
        return "One seed."
    return f"Mean of {seeds} seeds, with a band of one deviation."


def _ended(curves: Sequence[Curve]) -> list[str]:
    """Which lines end before their run, because a seed was stopped."""
    ended = [f"{curve.label} after {curve.ended:,} updates" for curve in curves if curve.ended is not None]
    return [f"Lines end where a seed was stopped: {', '.join(ended)}."] if ended else []


# --- Runs and data ---


def _run_line(
    study: Study,
    work: Work,
    record: RunRecord | None,
    measurements: Sequence[Measurement],
    makers: Sequence[Maker],
    out: Path,
) -> RunLine:
    cell, request = work.cell, work.cell.request
    cost = cost_of(measurements)
    values = values_of(request.config) | {name: _all_of(swept) for name, swept in request.sweep.items()}
    folder = RunFolder(out / cell.name)
    files = [folder.config, folder.metrics, folder.evaluations, folder.summary, folder.curves]
    files += sorted((folder.path / "evaluations").glob("*.json"))
    return RunLine(
        name=cell.name,
        link=Link(cell.name, quote(f"{cell.name}/")) if folder.path.exists() else None,
        files=tuple(Link(path.name, quote(str(path.relative_to(out)))) for path in files if path.exists()),
        state=_state_text(study, work, out),
        last_line=work.line,
        method=request.method,
        preset=request.preset or "",
        given=_fields({name: values[name] for name in cell.given}),
        reading="" if record is None else _fields(given_by(record.dataset.reading)),
        seeds=" ".join(map(str, request.settings.seeds)),
        members=cell.members,
        updates_per_second="" if cost is None else number_text(cost.updates_per_second),
        hours="" if cost is None else number_text(cost.hours),
        device="" if record is None else record.device,
        data_sha256="" if record is None else record.dataset.sha256,
        maker=None if record is None else next(maker.number for maker in makers if _made_by(maker, record)),
        command="" if record is None else record.command,
    )


def _all_of(swept: Sequence[float]) -> str:
    return " ".join(map(value_text, swept))


def _fields(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value_text(value)}" for name, value in values.items())


def _state_text(study: Study, work: Work, out: Path) -> str:
    if work.state in ("done", "failed"):
        return work.state
    updates, at = work.cell.request.settings.updates, standing(out / work.cell.name)
    if at is None:
        return "not begun" if work.state == "waiting" else f"unfinished: 0 of {updates:,} updates"
    if at.update < updates:
        return f"unfinished: {at.update:,} of {updates:,} updates"
    return "unfinished: trained, and not evaluated to the end"


def _makers(records: Sequence[RunRecord]) -> list[Maker]:
    made = [_facts(record) for record in records]
    return [Maker(number, *facts, made.count(facts)) for number, facts in enumerate(dict.fromkeys(made), 1)]


def _facts(record: RunRecord) -> tuple[str, str, str]:
    versions = [f"{name} {version}" for name, version in record.versions.items() if name != "commit"]
    return record.versions.get("commit", "not from a repository"), record.device, ", ".join(versions)


def _made_by(maker: Maker, record: RunRecord) -> bool:
    return (maker.commit, maker.device, maker.versions) == _facts(record)


def _data_lines(work: Sequence[Work], records: Mapping[str, RunRecord]) -> list[DataLine]:
    """One for each set of data; more where its runs have not read the same."""
    found = [_data_line(one.cell.data, records[one.cell.name]) for one in work if one.cell.name in records]
    return [line._replace(runs=found.count(line)) for line in dict.fromkeys(found)]


def _data_line(name: str, record: RunRecord) -> DataLine:
    reference = record.reference
    return DataLine(
        name,
        source=record.dataset.source,
        task=record.dataset.task or "",
        sha256=record.dataset.sha256,
        environment=str(record.environment or "none"),
        transitions=f"{record.transitions:,}" + (f" and {record.held_out:,} held out" if record.held_out else ""),
        data_return="" if record.data_return is None else number_text(record.data_return),
        reference="" if reference is None else " and ".join(map(number_text, reference)),
        runs=0,
    )
