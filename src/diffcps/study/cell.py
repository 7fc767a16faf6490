"""One cell of a study: a run, and the new episodes of its policies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from diffcps.records.fields import choices
from diffcps.records.folder import RunFolder
from diffcps.records.record import RunEvaluation
from diffcps.run.evaluate import evaluate
from diffcps.run.policy import Checkpoint
from diffcps.run.train import run
from diffcps.storage import read_json
from diffcps.study.plan import Cell, Final
from diffcps.types import UserError


class Standing(NamedTuple):
    """How far a cell is."""

    update: int
    updates_per_second: float | None
    score: float | None
    """Mean over the members of the last evaluation."""


def make_cell(cell: Cell, final: Final | None, folder: Path) -> None:
    """Trains the run, on from where it stopped, and plays the new episodes that are missing. Raises `UserError`."""
    run(cell.request, cell.request.load(), folder, resume=True)
    if final is None or RunFolder(folder).read_record().environment is None:
        return
    for choice in rules(cell, final):
        if not _final_file(folder, final, choice).exists():
            evaluate(
                folder,
                cast(Checkpoint, final.checkpoint),
                episodes=final.episodes,
                seed=final.seed,
                action_choice=choice,
            )


def rules(cell: Cell, final: Final) -> Iterator[str | None]:
    """The acting rules of the new episodes: the method's own (None), and further ones where it has a choice."""
    own = getattr(cell.request.config, "action_choice", None)
    known = choices(type(cell.request.config), "action_choice")
    yield None
    yield from (choice for choice in final.also_act if choice in known and choice != own)


def final_evaluations(cell: Cell, final: Final, folder: Path) -> Iterator[RunEvaluation]:
    """The new episodes that were played so far, a file for each acting rule."""
    found = RunFolder(folder)
    record = found.read_record()
    if record.environment is None:
        return
    for choice in rules(cell, final):
        path = _final_file(folder, final, choice)
        if path.exists():
            yield RunEvaluation.from_json(read_json(path), record.members)


def is_done(cell: Cell, final: Final | None, folder: Path) -> bool:
    """Whether nothing of the cell is left to do."""
    found = RunFolder(folder)
    if not found.summary.exists():
        return False
    record = found.read_record()
    rows = found.read_evaluations(record.members)
    if not rows or max(row.update for row in rows) < cell.request.settings.updates:
        return False
    if final is None or record.environment is None:
        return True
    return all(_final_file(folder, final, choice).exists() for choice in rules(cell, final))


def standing(folder: Path) -> Standing | None:
    """How far a run is; None before its first row."""
    found = RunFolder(folder)
    try:
        members = found.read_record().members
    except UserError:
        return None
    rows = found.read_measurements(members)
    if not rows:
        return None
    scores = found.read_evaluations(members)
    last = [row.score for row in scores if row.update == scores[-1].update and row.score is not None]
    return Standing(rows[-1].update, rows[-1].updates_per_second, sum(last) / len(last) if last else None)


def _final_file(folder: Path, final: Final, choice: str | None) -> Path:
    record = RunFolder(folder).read_record()
    assert record.environment is not None
    return RunFolder(folder).evaluation_path(record.environment, final.checkpoint, final.seed, choice)
