"""What a study has found: a row for each evaluation of each member, and the file that others analyse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffcps.records.fields import json_value, values_of
from diffcps.records.folder import RunFolder
from diffcps.records.record import Evaluation, MemberEpisodes, RunEvaluation, RunRecord
from diffcps.storage import Json, replaced
from diffcps.study.cell import final_evaluations
from diffcps.study.plan import Cell, Study
from diffcps.tasks.references import normalised_score
from diffcps.training.members import Member

if TYPE_CHECKING:
    import pyarrow

Protocol = Literal["training", "final"]
"""`training`: an evaluation in the course of the run; `final`: new episodes of a finished run's checkpoint."""


@dataclass(frozen=True)
class Origin:
    """The run that a result is of."""

    study: str
    data: str
    """Name of the data in the plan."""
    entry: str
    """Name of the method's table in the plan."""
    run: str
    """The run folder, below the study's."""
    method: str
    preset: str | None
    task: str | None
    environment: str | None
    dataset: str
    dataset_sha256: str
    data_return: float | None
    """Mean return of the data's episodes."""
    data_normalised: float | None
    """The same, where the reference returns are known."""
    updates: int
    """Of the whole run."""
    device: str
    commit: str | None
    """Of the library, where it was used from a repository."""
    version: str
    command: str


@dataclass(frozen=True)
class Result:
    """One member at one evaluation."""

    origin: Origin
    seed: int
    member: int
    config: Mapping[str, Json]
    """The fields of the method's config that the plan gives, sweeps or varies, with this member's values."""
    protocol: Protocol
    checkpoint: str | None
    """Of final episodes: last, best or selected."""
    acting: str | None
    """How actions are chosen, where the method has a choice. An evaluation in the course of a run is a row by its own
    rule and one by each of `also_act`."""
    update: int
    score: float | None
    """Mean return; None without an environment and where the episodes could not be played."""
    normalised: float | None
    """D4RL's score, where the reference returns are known."""
    returns: tuple[float, ...]
    success_at_last_step: float | None
    """Of final episodes, where the environment says."""
    success_at_any_step: float | None
    selection_loss: float | None
    """In the course of a run."""
    failure: str | None
    updates_per_second: float | None
    """Of all members together, before the evaluation."""
    unmet_bound: str | None
    """Field and value of a bound that the member's whole run did not meet ("kappa 0.05"; `run/bounds.py`)."""


def results_of(study: Study, out: Path) -> list[Result]:
    """Everything that the runs have evaluated so far, in the order of the plan."""
    return [row for cell in study.cells if RunFolder(out / cell.name).config.exists() for row in _of(study, cell, out)]


def _of(study: Study, cell: Cell, out: Path) -> Iterator[Result]:
    folder = RunFolder(out / cell.name)
    record = folder.read_record()
    origin = _origin(study, cell, record)
    rates = {row.update: row.updates_per_second for row in folder.read_measurements(record.members)}
    unmet = _unmet(folder)
    for row in folder.read_evaluations(record.members):
        own = _of_training(origin, cell, record, row, rates.get(row.update), unmet.get(row.member.index))
        yield own
        for rule, played in row.also.items():
            score, normalised = played.score, _normalised(played.score, record)
            yield replace(own, acting=rule, score=score, normalised=normalised, returns=played.returns)
    if study.final is not None:
        for evaluation in final_evaluations(cell, study.final, out / cell.name):
            for row in evaluation.members:
                yield _of_final(origin, cell, record, evaluation, row, unmet.get(row.member.index))


def _unmet(folder: RunFolder) -> dict[int, str]:
    """The bounds that a run did not meet, by member; of an unfinished run nothing is known."""
    found: dict[int, list[str]] = {}
    for row in folder.read_summary().unmet_bounds if folder.summary.exists() else ():
        found.setdefault(row.member.index, []).append(f"{row.field} {row.bound:g}")
    return {member: ", ".join(texts) for member, texts in found.items()}


def _origin(study: Study, cell: Cell, record: RunRecord) -> Origin:
    of_data, reference = record.data_return, record.reference
    return Origin(
        study=study.name,
        data=cell.data,
        entry=cell.entry,
        run=cell.name,
        method=record.algorithm,
        preset=cell.request.preset,
        task=record.dataset.task,
        environment=None if record.environment is None else str(record.environment),
        dataset=record.dataset.source,
        dataset_sha256=record.dataset.sha256,
        data_return=of_data,
        data_normalised=None if of_data is None or reference is None else float(normalised_score(of_data, reference)),
        updates=record.settings.updates,
        device=record.device,
        commit=record.versions.get("commit"),
        version=record.versions["diffcps"],
        command=record.command,
    )


def _of_training(
    origin: Origin,
    cell: Cell,
    record: RunRecord,
    row: Evaluation,
    updates_per_second: float | None,
    unmet_bound: str | None,
) -> Result:
    return Result(
        origin=origin,
        seed=row.member.seed,
        member=row.member.index,
        config=_config(cell, record, row.member),
        protocol="training",
        checkpoint=None,
        acting=getattr(record.config, "action_choice", None),
        update=row.update,
        score=row.score,
        normalised=None if row.score is None else _normalised(row.score, record),
        returns=row.returns,
        success_at_last_step=None,
        success_at_any_step=None,
        selection_loss=row.selection_loss,
        failure=row.failure,
        updates_per_second=updates_per_second,
        unmet_bound=unmet_bound,
    )


def _normalised(score: float, record: RunRecord) -> float | None:
    return None if record.reference is None else float(normalised_score(score, record.reference))


def _of_final(
    origin: Origin,
    cell: Cell,
    record: RunRecord,
    evaluation: RunEvaluation,
    row: MemberEpisodes,
    unmet_bound: str | None,
) -> Result:
    return Result(
        origin=origin,
        seed=row.member.seed,
        member=row.member.index,
        config=_config(cell, record, row.member),
        protocol="final",
        checkpoint=evaluation.checkpoint,
        acting=evaluation.action_choice,
        update=row.updates,
        score=row.score,
        normalised=row.normalised,
        returns=row.returns,
        success_at_last_step=row.success_at_last_step,
        success_at_any_step=row.success_at_any_step,
        selection_loss=None,
        failure=None,
        updates_per_second=None,
        unmet_bound=unmet_bound,
    )


def _config(cell: Cell, record: RunRecord, member: Member) -> dict[str, Json]:
    values = values_of(record.config) | dict(member.swept)
    return {name: json_value(values[name]) for name in cell.given}


# --- The file ---


def table_of(results: Sequence[Result]) -> pyarrow.Table:
    """A row for each result, a typed column for each field; `config.NAME` for the fields of configs.

    A field that is a number for some and text for others (infinity is text in JSON) is text for all. Needs
    pyarrow (extra `studies`).
    """
    import pyarrow

    columns: dict[str, list[object]] = {}
    for field in fields(Origin):
        columns[field.name] = [getattr(row.origin, field.name) for row in results]
    for field in fields(Result):
        if field.name not in ("origin", "config"):
            columns[field.name] = [getattr(row, field.name) for row in results]
    for name in dict.fromkeys(name for row in results for name in row.config):
        columns[f"config.{name}"] = _of_one_kind([row.config.get(name) for row in results])
    types = {"returns": pyarrow.list_(pyarrow.float64())} | {name: pyarrow.float64() for name in _NUMBERS}
    texts = {name: pyarrow.string() for name in _TEXTS}
    return pyarrow.table({name: pyarrow.array(values, (types | texts).get(name)) for name, values in columns.items()})


_NUMBERS = (
    *("data_return", "data_normalised", "score", "normalised", "success_at_last_step", "success_at_any_step"),
    *("selection_loss", "updates_per_second"),
)
_TEXTS = ("preset", "task", "environment", "commit", "checkpoint", "acting", "failure", "unmet_bound")
"""Columns that may hold nothing but None, whose type nothing would say."""


def _of_one_kind(values: list[Json]) -> list[object]:
    kinds = {
        float if isinstance(value, int | float) and not isinstance(value, bool) else type(value) for value in values
    }
    kinds -= {type(None)}
    if kinds == {float}:
        return [None if value is None else float(str(value)) for value in values]
    if kinds == {bool}:
        return list(values)
    return [None if value is None else str(value) for value in values]


def write_results(results: Sequence[Result], path: Path) -> None:
    """Replaces the Parquet file as a whole. Needs pyarrow."""
    table = table_of(results)
    import pyarrow.parquet

    with replaced(path) as file:
        pyarrow.parquet.write_table(table, file)
