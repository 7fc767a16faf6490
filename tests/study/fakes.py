"""Folders of studies without any training: written through the library's records, with numbers that are given."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.records.folder import RunFolder
from diffcps.records.record import Evaluation, Measurement, MemberEpisodes, Played, RunEvaluation, RunRecord, Summary
from diffcps.study.cell import rules
from diffcps.study.plan import Cell, Final, study_of
from diffcps.study.run import PLAN, failure_of
from diffcps.tasks.references import normalised_score
from diffcps.training.members import Member, expand
from diffcps.types import DatasetInfo, EnvironmentSpec, Spec

Reference = tuple[float, float]
ScoreOf = Callable[[Cell, Member, int], float]
"""The score of a member after so many updates; those of new episodes are asked for with update 0."""


class Fake(NamedTuple):
    """How far a run is, and what it found."""

    score: ScoreOf
    reference: Reference | None = (0.0, 1000.0)
    updates: int | None = None
    """Updates that were made; all of the plan's by default."""
    final: bool = True
    """Whether the new episodes were played."""
    environment: EnvironmentSpec | None = EnvironmentSpec("Hopper-v5")
    stops: dict[int, int] | None = None
    """After how many updates a member diverged, by its index."""
    data_return: float | None = 400.0
    commit: str = "0123456789"


def write_study(
    out: Path, text: str, fake: Callable[[Cell], Fake | None], failed: Mapping[str, str] | None = None
) -> None:
    """The folder of the plan `text`; a run for which there is no fake has not begun.

    `failed` has the last lines of those that failed, by their names.
    """
    study = study_of(tomllib.loads(text), "study")
    out.mkdir(parents=True, exist_ok=True)
    (out / PLAN).write_text(text)
    for cell in study.cells:
        facts = fake(cell)
        if facts is not None:
            write_run(out / cell.name, cell, study.final, facts)
        if failed is not None and cell.name in failed:
            failure_of(cell, out).parent.mkdir(parents=True, exist_ok=True)
            failure_of(cell, out).write_text(failed[cell.name])


def write_run(path: Path, cell: Cell, final: Final | None, fake: Fake) -> None:
    """The folder of one run."""
    request, settings = cell.request, cell.request.settings
    record = RunRecord(
        algorithm=request.method,
        config=request.config,
        sweep=request.sweep,
        settings=settings,
        environment=fake.environment,
        reference=fake.reference,
        dataset=DatasetInfo(f"{cell.data}.hdf5", "abc" * 21 + "d"),
        transitions=10_000,
        data_return=fake.data_return,
        spec=Spec(11, 3),
        command=f"diffcps study run study.toml --out DIR ({cell.name})",
        versions={"python": "3.11.7", "diffcps": "0.1.0", "jax": "0.10.2", "commit": fake.commit},
        device="cpu x 2",
    )
    path.mkdir(parents=True)
    folder, members = RunFolder(path), expand(settings.seeds, request.sweep)
    folder.write_record(record)
    made = settings.updates if fake.updates is None else fake.updates
    for update in sorted({*range(settings.log_every, made + 1, settings.log_every), made} - {0}):
        left = [member for member in members if update <= (fake.stops or {}).get(member.index, update)]
        folder.append_measurements(_measurement(request.method, member, update) for member in left)
        if settings.lengths.evaluates_at(update):
            folder.append_evaluations(_evaluation(cell, member, update, fake) for member in left)
    folder.write_summary(Summary(request.method, "Hopper-v5", made, None, fake.reference, ()))
    if final is not None and fake.final and fake.environment is not None and made == settings.updates:
        for choice in rules(cell, final):
            folder.write_evaluation(_new_episodes(cell, members, final, choice, fake, made))


def _measurement(method: str, member: Member, update: int) -> Measurement:
    """Plausible numbers: a loss that falls to its bound, a multiplier that rises."""
    random = np.random.default_rng([member.index, update])
    bound = member.swept.get("kappa", 0.05)
    metrics: dict[str, float | None] = dict.fromkeys(ALGORITHMS[method].METRICS, 1.0)
    metrics |= {
        "actor/bc_loss": bound + 0.5 * math.exp(-update / 3000) + 0.003 * random.random(),
        "dual/multiplier": 1 + (0.06 / bound) * (1 - math.exp(-update / 5000)) + 0.05 * random.random(),
    }
    return Measurement(update, member, metrics, 50.0)


def _evaluation(cell: Cell, member: Member, update: int, fake: Fake) -> Evaluation:
    diagnosis = {"selection/loss": 1.0 / update}
    if fake.environment is None:
        return Evaluation(update, member, None, (), (), diagnosis)
    score = fake.score(cell, member, update)
    further = {rule: Played(score - 50.0, (score - 50.0,), (10,)) for rule in cell.request.settings.also_act}
    return Evaluation(update, member, score, (score - 1.0, score + 1.0), (10, 10), diagnosis, also=further)


def _new_episodes(
    cell: Cell, members: Sequence[Member], final: Final, choice: str | None, fake: Fake, made: int
) -> RunEvaluation:
    own = getattr(cell.request.config, "action_choice", None)
    rows: list[MemberEpisodes] = []
    for member in members:
        score = fake.score(cell, member, 0) - (0.0 if choice is None else 50.0)
        normalised = None if fake.reference is None else float(normalised_score(score, fake.reference))
        updates = (fake.stops or {}).get(member.index, made)
        returns = (score,) * final.episodes
        rows.append(
            MemberEpisodes(member, updates, score, 0.0, normalised, None, None, returns, (10,) * final.episodes)
        )
    assert fake.environment is not None
    return RunEvaluation(
        cell.request.method,
        final.checkpoint,
        fake.environment,
        final.episodes,
        final.seed,
        own if choice is None else choice,
        tuple(rows),
    )
