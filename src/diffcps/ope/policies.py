"""Which policies are judged: checkpoints and members of runs, and what they do in logged states."""

# JAX leaves some of its types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import safetensors.numpy

from diffcps.records.folder import RunFolder
from diffcps.records.record import Evaluation
from diffcps.run.policy import Checkpoint, LoadedRun, checkpoint_path, load_run
from diffcps.storage import write_atomically
from diffcps.training import checkpoint
from diffcps.training.members import Member
from diffcps.types import Count, NetObservation, UserError

CHUNK = 256
"""States in which the members of a run act at once."""
WHOLE = "all"
"""The word for every checkpoint that a run has by its number of updates: those that were kept, and the last."""


class Source(NamedTuple):
    """One checkpoint of a run."""

    run: Path
    checkpoint: str
    """Its name, or after how many updates it was kept."""

    @property
    def path(self) -> Path:
        """Its file. Raises `UserError` where there is none."""
        which = int(self.checkpoint) if self.checkpoint.isdecimal() else self.checkpoint
        return checkpoint_path(RunFolder(self.run), which)

    def load(self, action_choice: str | None) -> LoadedRun:
        """The run at this checkpoint. Raises `UserError`."""
        which = int(self.checkpoint) if self.checkpoint.isdecimal() else cast(Checkpoint, self.checkpoint)
        return load_run(self.run, which, action_choice)


@dataclass(frozen=True)
class Judged:
    """One policy: a member of a run at a checkpoint."""

    run: str
    """The folder, as it was given."""
    method: str
    checkpoint: str
    member: Count
    label: str
    """The member's seed and swept values."""
    updates: Count
    score: float | None
    """Mean return of the run's own evaluation of it, undiscounted, where it was played."""
    selection_loss: float | None
    """By which the run chooses without an environment."""


def sources_of(runs: Sequence[Path], checkpoints: Sequence[str]) -> list[Source]:
    """The checkpoints that are meant. Raises `UserError` for a run named twice, and where one has none."""
    sources: list[Source] = []
    for run in runs:
        if runs.count(run) > 1:
            raise UserError(f"{run}: is named twice; name each run once")
        folder = RunFolder(run)
        folder.read_record()
        for word in checkpoints:
            sources += [Source(run, which) for which in (_whole(folder) if word == WHOLE else [word])]
    for source in sources:
        if sources.count(source) > 1:
            raise UserError(f"checkpoint {source.checkpoint} is named twice; name each once")
    return sources


def _whole(folder: RunFolder) -> list[str]:
    """The kept checkpoints, and the last one, unless it is that of the same update."""
    kept = folder.kept_updates()
    last = checkpoint.information(checkpoint_path(folder, "last"))["update"]
    return [*map(str, kept), *([] if last in kept else ["last"])]


def judged_of(source: Source, loaded: LoadedRun) -> list[Judged]:
    """The policies of a checkpoint: all members that had not diverged by then."""
    members = loaded.record.members
    evaluations = {(row.member.index, row.update): row for row in loaded.folder.read_evaluations(members)}
    found = list[Judged]()
    for member, updates in zip(members, loaded.updates, strict=True):
        row = evaluations.get((member.index, updates))
        if row is None and any(update == updates for _, update in evaluations):
            continue  # the others were evaluated, and this one was not there any more
        found.append(_judged(source, loaded.record.algorithm, member, updates, row))
    return found


def _judged(source: Source, method: str, member: Member, updates: int, row: Evaluation | None) -> Judged:
    return Judged(
        run=str(source.run),
        method=method,
        checkpoint=source.checkpoint,
        member=member.index,
        label=member.label,
        updates=updates,
        score=None if row is None else row.score,
        selection_loss=None if row is None else row.selection_loss,
    )


def act_in(loaded: LoadedRun, observation: NetObservation, seed: int, on_rows: Callable[[int], None]) -> np.ndarray:
    """ "n obs" -> "members n act" in [-1, 1]: what each member does in these states, one draw each.

    `on_rows(count)` is called when so many more are done. The draws depend on `seed` and the row alone.
    """
    members, size = len(loaded.record.members), loaded.record.spec.action_size
    state = loaded.program.place(loaded.state)
    actions = np.empty((members, len(observation), size), np.float32)
    for number, start in enumerate(range(0, len(observation), CHUNK)):
        rows = observation[start : start + CHUNK]
        filled = np.zeros((CHUNK, observation.shape[1]), np.float32)
        filled[: len(rows)] = rows
        seen = NetObservation(np.broadcast_to(filled, (members, *filled.shape)))
        action = loaded.program.act(state, seen, seed, number)
        actions[:, start : start + CHUNK] = np.clip(action, -1.0, 1.0)[:, : len(rows)]
        on_rows(len(rows))
    return actions


def kept_actions(
    path: Path,
    loaded: LoadedRun,
    states: Mapping[str, NetObservation],
    seed: int,
    on_rows: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """`act_in` for several arrays of states, by their names; read from the file where it was done before."""
    if path.exists():
        on_rows(sum(len(array) for array in states.values()))
        return safetensors.numpy.load_file(path)
    actions = {
        name: act_in(loaded, array, seed + number, on_rows) for number, (name, array) in enumerate(states.items())
    }
    write_atomically(path, safetensors.numpy.save(actions))
    return actions
