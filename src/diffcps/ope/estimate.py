"""The value of policies from logged data: fitted Q evaluation of all of them side by side, in a folder that goes on."""

# JAX leaves some of its types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from diffcps.data.actions import Box
from diffcps.data.load import load
from diffcps.data.split import rows_of
from diffcps.data.transforms import MeanAndStd, episode_starts, mean_and_std
from diffcps.evaluation.statistics import estimate, mean
from diffcps.ope import fqe
from diffcps.ope.policies import WHOLE, Judged, Source, judged_of, kept_actions, sources_of
from diffcps.readers.hashes import sha256_of_file
from diffcps.records import fields
from diffcps.records.folder import RunFolder
from diffcps.records.record import RunRecord
from diffcps.rl.returns import lambda_returns
from diffcps.run.policy import LoadedRun
from diffcps.run.preflight import check_needs
from diffcps.storage import SOFTWARE, JsonRow, claim, locked, read_json, read_rows, write_atomically, write_json
from diffcps.training import loop
from diffcps.training.loop import Interrupted, Lengths, Training
from diffcps.training.members import Member, Program, a_device_per_core
from diffcps.types import Count, Dataset, NetObservation, Reading, UserError

REQUEST_FILE, RESULT_FILE = "request.json", "ope.json"
COURSE = 5
"""Times at which the estimates are taken down while they are fitted."""
BOOTSTRAP_SEED = 0
STILL = 0.1
"""Estimates have come to rest where the last part of the fitting moved none by more than this share of their spread."""


@dataclass(frozen=True)
class Terms:
    """How policies are judged."""

    checkpoints: tuple[str, ...] = (WHOLE,)
    """Of each run: all (those that were kept, and the last), best, selected, last, or numbers of updates."""
    fit_updates: int = 20_000
    """Updates of each value."""
    rows: Count = 0
    """Transitions that the values are fitted on, drawn once; 0: all. Acting in them is what costs."""
    action_choice: str | None = None
    """How the policies act, where they choose among candidates: sample, softmax_q, argmax_q; by default as they do."""
    fit_seed: Count = 0
    """Of the draws of rows, of actions and of the values' first weights; the same for all policies."""


@dataclass(frozen=True)
class Estimated:
    """A policy and what it is worth."""

    policy: Judged
    value: float | None
    """J: the mean of Q over the first states of the data's episodes; None where the fitting diverged."""
    low: float | None
    """Of the 95 % bootstrap interval over those states: it says nothing of the error of Q."""
    high: float | None
    course: tuple[float, ...]
    """J at `COURSE` times while it was fitted; the last is `value`."""

    @property
    def worth(self) -> float:
        """The value; below every other where the fitting diverged."""
        return -np.inf if self.value is None else self.value


@dataclass(frozen=True)
class Judgement:
    """What `diffcps ope` has found: ope.json."""

    source: str
    sha256: str
    transitions: int
    """That the values were fitted on."""
    of_transitions: int
    episodes: int
    logged_value: float
    """Mean discounted return of the data's own episodes, what comes behind a time limit not counted."""
    settings: Terms
    config: fqe.Config
    estimates: tuple[Estimated, ...]

    def write(self, path: Path) -> None:
        """Replaces the file as a whole."""
        write_json(path, {"software": SOFTWARE, **fields.to_json(self)})

    @classmethod
    def read(cls, path: Path) -> Judgement:
        """The inverse of `write`. Raises `UserError` for what is no such file, and FileNotFoundError."""
        content = read_json(path)
        content.pop("software", None)
        return fields.from_json(cls, content)

    @property
    def moves(self) -> bool:
        """Whether the estimates had not come to rest: more updates would change them."""
        known = [one.course for one in self.estimates if len(one.course) > 1]
        ends = [course[-1] for course in known]
        spread = max(np.ptp(ends), abs(self.logged_value) * STILL) if ends else 0.0
        return any(abs(course[-1] - course[-2]) > STILL * spread for course in known)


@runtime_checkable
class Progress(Protocol):
    """What the person who waits is told."""

    def begin(self, words: str, total: int) -> None:
        """A part of the work with so many steps begins."""
        ...

    def advance(self, count: int) -> None:
        """So many more steps of it are done."""
        ...

    def note(self, words: str) -> None:
        """A line that stays."""
        ...


def judge(
    runs: Sequence[Path],
    out: Path,
    data: str | None = None,
    settings: Terms = Terms(),
    config: fqe.Config = fqe.Config(),  # noqa: B008
    *,
    progress: Progress,
) -> Judgement:
    """The value of the policies of runs by fitted Q evaluation on logged data, by default those that they learnt from.

    All are judged on the same rows, with the same first weights and draws, in one program. `out` keeps what was done:
    the same call goes on after a stop. Raises `UserError` where runs differ in what their observations and actions
    mean, and `Interrupted`, when all is saved.
    """
    a_device_per_core()
    check(settings, config)
    sources = sources_of(runs, settings.checkpoints)
    records = [RunFolder(run).read_record() for run in runs]
    data = _data_of(records, runs) if data is None else data
    reading = _common_reading(records, runs)
    dataset = _load(data, records[0], dataclasses.replace(reading, normalise_observation=True), None)
    check_needs(fqe.make(config, dataset.spec, fqe.Units(0, 1, 0, 1)).needs, "off-policy evaluation", dataset.info)
    with locked(out):
        claim(out / REQUEST_FILE, _request(sources, dataset, settings, config))
        rows = _chosen_rows(dataset.size, settings)
        first = first_rows(dataset)
        loaded = _loaded(sources, settings.action_choice)
        judged, actions, first_actions = _actions(sources, loaded, data, reading, rows, first, settings, out, progress)
        scale, logged_value = scale_of(dataset, first, config.discount)
        fitted = rows_of(dataset, rows)
        states = np.asarray(dataset.observation)[first]
        courses, values = _fit(fitted, actions, states, first_actions, scale, settings, config, out, progress)
        estimates = tuple(map(_estimated, judged, courses.T, values))
        found = Judgement(
            source=data,
            sha256=dataset.info.sha256,
            transitions=fitted.size,
            of_transitions=dataset.size,
            episodes=len(first),
            logged_value=logged_value,
            settings=settings,
            config=config,
            estimates=estimates,
        )
        found.write(out / RESULT_FILE)
        return found


def check(settings: Terms, config: fqe.Config) -> None:
    """Raises `UserError` for values that no evaluation takes."""
    fields.build(Terms, fields.values_of(settings))
    fields.build(fqe.Config, fields.values_of(config))
    if not 0 <= config.discount < 1:
        raise UserError(f"discount is {config.discount:g}: it must be 0 or more and below 1, or sums have no end")
    if not 0 < config.target_rate <= 1:
        raise UserError(f"target_rate is {config.target_rate:g}: it must be above 0 and at most 1")
    if settings.fit_updates < COURSE:
        raise UserError(f"fit_updates is {settings.fit_updates}: it must be {COURSE} or more")


# --- The data ---


def _data_of(records: Sequence[RunRecord], runs: Sequence[Path]) -> str:
    """The data that all runs learnt from."""
    for record, run in zip(records, runs, strict=True):
        if record.dataset.sha256 != records[0].dataset.sha256:
            raise UserError(
                f"{run}: learnt from {record.dataset.source}, and {runs[0]} from {records[0].dataset.source}: name the "
                "data to judge them on (--dataset)"
            )
    return records[0].dataset.source


def _common_reading(records: Sequence[RunRecord], runs: Sequence[Path]) -> Reading:
    """How the data are read for all runs: as they read them, with all episodes and rewards as they are."""
    readings = [
        dataclasses.replace(
            record.dataset.reading, reward="none", reward_scale=1.0, top_episodes=1.0, normalise_observation=False
        )
        for record in records
    ]
    boxes = [Box.of(record.dataset.action_low, record.dataset.action_high) for record in records]
    for record, run, reading, box in zip(records, runs, readings, boxes, strict=True):
        if record.spec != records[0].spec or not box.same(boxes[0]):
            raise UserError(f"{run}: its observations or actions are others than those of {runs[0]}: judge it alone")
        for name, value in fields.values_of(reading).items():
            if value != getattr(readings[0], name):
                raise UserError(f"{run}: read its data with another {name} than {runs[0]}: judge it alone")
    return readings[0]


def _load(data: str, record: RunRecord, reading: Reading, known: MeanAndStd | None) -> Dataset:
    """The data in the units of the run's actions. Raises `UserError` where they have other sizes than its networks."""
    info = record.dataset
    box = "these runs", Box.of(info.action_low, info.action_high)
    dataset = load(data, reading, task=info.task, box_of=lambda _: box, known=known)
    if dataset.spec != record.spec:
        raise UserError(
            f"{data}: has observations of {dataset.spec.observation_size} and actions of {dataset.spec.action_size} "
            f"numbers, the runs {record.spec.observation_size} and {record.spec.action_size}: name data of their task"
        )
    return dataset


def _request(sources: Sequence[Source], dataset: Dataset, settings: Terms, config: fqe.Config) -> JsonRow:
    """What the folder holds, down to the bytes of the policies, in words that an error can show."""
    hashes = [sha256_of_file(source.path, str(source.path)) for source in sources]
    policies = [[str(source.run), source.checkpoint, sha256] for source, sha256 in zip(sources, hashes, strict=True)]
    return {
        **fields.to_json(settings),
        **fields.to_json(config),
        "dataset": dataset.info.sha256[:12],
        "policies": f"{len(policies)}, {hashlib.sha256(json.dumps(policies).encode()).hexdigest()[:12]}",
    }


def _chosen_rows(size: int, settings: Terms) -> np.ndarray:
    """(n,) int: the rows that values are fitted on, in order."""
    if settings.rows == 0 or settings.rows >= size:
        return np.arange(size)
    return np.sort(np.random.default_rng(settings.fit_seed).permutation(size)[: settings.rows])


def first_rows(dataset: Dataset) -> np.ndarray:
    """(episodes,) int: the row with which each episode begins."""
    return episode_starts(np.asarray(dataset.terminal) | np.asarray(dataset.timeout))


def scale_of(dataset: Dataset, first: np.ndarray, discount: float) -> tuple[fqe.Units, float]:
    """The units of the values, and the mean discounted return of the data's own episodes."""
    to_go = np.asarray(lambda_returns(dataset, jnp.zeros(dataset.size), discount, 1.0), np.float64)
    reward = np.asarray(dataset.reward)
    least, greatest = min(0.0, float(reward.min())), max(0.0, float(reward.max()))
    std = float(to_go.std())
    scale = fqe.Units(float(to_go.mean()), std if std > 0 else 1.0, least / (1 - discount), greatest / (1 - discount))
    return scale, float(to_go[first].mean())


# --- What the policies do ---


def _loaded(sources: Sequence[Source], action_choice: str | None) -> list[LoadedRun]:
    """The runs at their checkpoints; those of one run share their program, which is compiled once."""
    programs: dict[Path, Program] = {}
    found: list[LoadedRun] = []
    for source in sources:
        loaded = source.load(action_choice)
        found.append(loaded._replace(program=programs.setdefault(source.run, loaded.program)))
    return found


def _actions(
    sources: Sequence[Source],
    loaded: Sequence[LoadedRun],
    data: str,
    reading: Reading,
    rows: np.ndarray,
    first: np.ndarray,
    settings: Terms,
    out: Path,
    progress: Progress,
) -> tuple[list[Judged], np.ndarray, np.ndarray]:
    """The policies, their next actions "m n act" in the chosen rows, and their first ones "m e act"."""
    folder = out / "actions"
    folder.mkdir(exist_ok=True)
    progress.begin("acting in logged states", len(sources) * (len(rows) + len(first)))
    judged = list[Judged]()
    following, starting = list[np.ndarray](), list[np.ndarray]()
    with loop.stop_requests() as stop_requested:

        def on_rows(count: int) -> None:
            progress.advance(count)
            if stop_requested():
                raise Interrupted(0)

        states = dict[Path, dict[str, NetObservation]]()
        for number, (source, run) in enumerate(zip(sources, loaded, strict=True)):
            if source.run not in states:
                states = {source.run: _states(run.record, data, reading, rows, first)}
            path = folder / f"{number}.safetensors"
            actions = kept_actions(path, run, states[source.run], settings.fit_seed, on_rows)
            for policy in judged_of(source, run):
                judged.append(policy)
                following.append(actions["next"][policy.member])
                starting.append(actions["first"][policy.member])
    if not judged:
        raise UserError("there is no policy to judge: every member of these runs has diverged")
    return judged, np.stack(following), np.stack(starting)


def _states(
    record: RunRecord, data: str, reading: Reading, rows: np.ndarray, first: np.ndarray
) -> dict[str, NetObservation]:
    """Next states of the chosen rows and first states of the episodes, as the networks of this run see them."""
    known = mean_and_std(record.dataset)
    dataset = _load(data, record, dataclasses.replace(reading, normalise_observation=known is not None), known)
    return {
        "next": NetObservation(np.asarray(dataset.next_observation)[rows]),
        "first": NetObservation(np.asarray(dataset.observation)[first]),
    }


# --- Their values ---


def _fit(
    dataset: Dataset,
    actions: np.ndarray,
    states: np.ndarray,
    first_actions: np.ndarray,
    scale: fqe.Units,
    settings: Terms,
    config: fqe.Config,
    out: Path,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """J of each policy at `COURSE` times, "times m", and Q of the first states at the end, "m e".

    NaN where the value of a policy has diverged.
    """
    members = [Member(index, settings.fit_seed, {}) for index in range(len(actions))]
    program = Program(lambda swept: fqe.make(config, dataset.spec, scale), members, dataset)
    updates, path, log = settings.fit_updates, out / "values.safetensors", out / "course.jsonl"
    every = -(-updates // COURSE)
    lengths = Lengths(updates, every, min(every, 500))
    training = loop.resume(program, path, updates) if path.exists() else loop.begin(program)
    training.labels = program.place_labels(actions)
    rows = [row for row in read_rows(log) if int(str(row["update"])) <= training.update]
    progress.begin(f"fitting {len(members)} value{'s' if len(members) > 1 else ''}", updates)
    progress.advance(training.update)
    before = training.update
    with loop.stop_requests() as stop_requested:
        for boundary in loop.advance(program, training, lengths, lambda update: None):
            progress.advance(training.update - before)
            before = training.update
            for line in boundary.diverged:
                progress.note(f"the value of a policy ran away: {line}")
            if lengths.evaluates_at(training.update):
                now = _values(training, scale, states, first_actions).mean(axis=1)
                rows.append({"update": training.update, "values": [None if np.isnan(x) else float(x) for x in now]})
            if lengths.evaluates_at(training.update) or stop_requested():
                write_atomically(log, "".join(json.dumps(row) + "\n" for row in rows).encode())
                loop.save(program, training, path, updates)
            if stop_requested() and training.update < updates:
                raise Interrupted(training.update)
    if not training.alive.any():
        why = next(iter(training.stopped.values()))
        raise UserError(f"the values of all policies ran away ({why}): take a lower --learning-rate, or --clip-targets")
    courses = np.array([row["values"] for row in rows], float)
    return courses, _values(training, scale, states, first_actions)


def _values(training: Training, scale: fqe.Units, states: np.ndarray, first_actions: np.ndarray) -> np.ndarray:
    """Q of the first states for each policy, "m e", in float64; NaN for those that have diverged."""
    values = np.array(fqe.first_values(training.state, scale, states, first_actions), np.float64)
    values[~training.alive] = np.nan
    return values


def _estimated(policy: Judged, course: np.ndarray, values: np.ndarray) -> Estimated:
    """The value of one policy with its interval, from Q of the first states."""
    if not np.isfinite(values).all():
        return Estimated(policy, None, None, None, ())
    found = estimate([values], mean, BOOTSTRAP_SEED)
    low, high = (None, None) if found.interval is None else found.interval
    return Estimated(policy, found.value, low, high, tuple(course.tolist()))
