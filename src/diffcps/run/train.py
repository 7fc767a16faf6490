"""Training a run: every member to its last update, with logs, scores and checkpoints in a run folder."""

# JAX and matplotlib leave some of their types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import dataclasses
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from diffcps.data.split import hold_out
from diffcps.data.summary import episode_returns
from diffcps.envs.make import check_fits
from diffcps.envs.names import Environment, named
from diffcps.evaluation.scores import Scores, four_scores, scores_of_the_same
from diffcps.optim import without_memory
from diffcps.presets import presets_of
from diffcps.records import fields
from diffcps.records.environment import environment_of, reference_of
from diffcps.records.folder import RunFolder
from diffcps.records.record import (
    Evaluation,
    Measurement,
    MemberScores,
    PeakMemory,
    RunRecord,
    Selected,
    Summary,
    differences,
)
from diffcps.records.settings import NO_ENVIRONMENT, Settings
from diffcps.run.bounds import unmet_bounds, unmet_line
from diffcps.run.chosen import BY_LOSS, BY_SCORE, Chosen
from diffcps.run.evaluate import evaluate_members, of_member, rows_to_diagnose
from diffcps.run.policy import acting_by, program_of
from diffcps.run.preflight import (
    check_box,
    check_disk,
    check_memory,
    check_needs,
    check_windows,
    preflight,
    with_limits_noticed,
)
from diffcps.run.progress import Display, Silent
from diffcps.run.resolve import Given, Request, given_by, method_of, resolve
from diffcps.run.start import fitted, initial_state, start_of
from diffcps.storage import Json
from diffcps.training import checkpoint, loop
from diffcps.training.loop import Boundary, Interrupted, Training
from diffcps.training.members import Member, Program, a_device_per_core
from diffcps.training.memory import peak_of_devices, peak_of_host
from diffcps.types import Configuration, Dataset, DatasetInfo, EnvironmentSpec, Reading, Tree, UserError

PACKAGES = ("diffcps", "jax", "equinox", "optax", "numpy", "gymnasium", "mujoco")
"""Packages whose versions are written down with a run."""


def train(
    config: Configuration,
    dataset: Dataset | str | Path | None = None,
    settings: Settings | None = None,
    *,
    out: str | Path,
    environment: Environment | None = None,
    task: str | None = None,
    preset: str | None = None,
    reading: Reading = Reading(),  # noqa: B008 (it is immutable)
    sweep: Mapping[str, Sequence[float]] | None = None,
    init_from: str | Path | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> Summary:
    """Trains every seed (and every combination of swept values) in one program, evaluates, writes the run folder `out`.

    `config` is an algorithm's `Config`; `dataset` what `load_dataset` takes or returns, by default the data of `task`
    (`diffcps data list`), else the built-in dataset; `reading` says how it is read, where it is not loaded yet.
    `environment` gives the scores, in the place of `settings.env`: an id, an `EnvironmentSpec`, or a function without
    arguments that makes one. `preset` names hyper-parameters of the paper, by default those of the task; "none" takes
    no preset. A field of `config` with another value than its default stays as it is; all others take the preset's
    value. `sweep` gives real-valued fields several values. `init_from` is the folder of a run of the same method, whose
    last weights (and optimisers) the new run begins with.

    Returns the run's summary: the four scores of each member, as in `summary.json`. With `resume` an interrupted run
    goes on where it stopped. Raises `UserError` for bad input and `Interrupted` after Ctrl-C, when all is saved.
    """
    method = method_of(config)
    fields.build(type(config), fields.values_of(config))
    given = Given(
        fields=given_by(config),
        sweep={name: tuple(values) for name, values in (sweep or {}).items()},
        settings=({} if settings is None else given_by(settings))
        | ({} if environment is None else {"env": environment if isinstance(environment, str) else named(environment)}),
        source=dataset.info.source if isinstance(dataset, Dataset) else None if dataset is None else str(dataset),
        reading=given_by(dataset.info.reading if isinstance(dataset, Dataset) else reading),
    )
    folder = RunFolder(out)
    stored = folder.read_record() if resume and folder.config.exists() else None
    request = resolve(method, given, task, preset, start=start_of(init_from, stored))
    if not isinstance(dataset, Dataset):
        return run(request, request.load(), out, resume=resume, display=display)
    _check_loaded(dataset.info, request)
    return run(request, dataset, out, resume=resume, display=display)


def _check_loaded(info: DatasetInfo, request: Request) -> None:
    """Raises `UserError` where a dataset was loaded in another way than its task and preset want."""
    if request.task is not None and info.task != request.task:
        raise UserError(f"{info.source}: was loaded for {info.task or 'no task'}; load it with task={request.task!r}")
    if request.preset is not None:
        wanted = presets_of(request.method)[request.preset].reward
        if info.reading.reward != wanted:
            raise UserError(
                f"{info.source}: was loaded with reward={info.reading.reward!r}, where preset {request.preset} wants "
                f"{wanted!r}: load it with reward={wanted!r}, or train with preset='none'"
            )


def run(
    request: Request, dataset: Dataset, out: str | Path, *, resume: bool = False, display: Display | None = None
) -> Summary:
    """Trains what `resolve` made of a person's words, on the data that it names. Returns and raises as `train`."""
    a_device_per_core()  # before anything is computed
    if request.start is not None:
        dataset = fitted(dataset, request.start)
    environment = environment_of(request.settings, dataset.info)
    if environment is not None:
        sizes = check_fits(dataset.spec, dataset.info, environment)
        check_box(dataset.info, environment, sizes)
        dataset = with_limits_noticed(dataset, environment, sizes)
    whole, held_out = dataset, None
    if request.settings.validation > 0:
        dataset, held_out = hold_out(whole, request.settings.validation)
    record = dataclasses.replace(
        _record(request, dataset), data_return=data_return(whole), held_out=0 if held_out is None else held_out.size
    )
    preflight(record)
    folder = RunFolder(out)
    check_memory(dataset, record.settings)
    program = program_of(record, record.members, dataset)
    check_needs(program.needs, record.algorithm, dataset.info)
    measured = dataset if held_out is None else held_out
    check_windows(program.episode_steps, record.algorithm, dataset, measured)
    program.check(dataset)
    rows = rows_to_diagnose(measured, program.episode_steps)
    program.starts(record.settings.updates)  # raises where a stage would have no update
    check_disk(program, folder, record.settings)
    goes_on = resume and folder.last.exists()
    initial = None
    if record.init_from is not None and not goes_on:
        initial = initial_state(record.init_from, record, program)
    with folder.locked():
        record = _settle(folder, record, resume, may_grow=program.num_stages == 1)
        try:
            if goes_on:
                training = loop.resume(program, folder.last, record.settings.updates)
            else:
                training = _begin(program, record, folder, initial)
            _fit(program, training, record, folder, rows, display or Silent())
        except Interrupted:  # it has something to show, too
            _report(folder, record)
            raise
        summary = _report(folder, record)
        if summary.unmet_bounds:
            (display or Silent()).note(unmet_line(record, summary.unmet_bounds))
        return summary


def _begin(program: Program, record: RunRecord, folder: RunFolder, initial: Tree) -> Training:
    """All members before their first update. Weights of another run are saved at once: it is not needed any more."""
    training = loop.begin(program)
    if initial is not None:
        training.state = initial
        loop.save(program, training, folder.last, record.settings.updates)
    return training


def _fit(
    program: Program, training: Training, record: RunRecord, folder: RunFolder, rows: Dataset, display: Display
) -> None:
    """Trains to the last update inside a locked folder, on from where `training` is.

    Where an evaluation is due the state is saved before: an environment is foreign code, and may take the process with
    it. A run that goes on therefore makes the evaluation of its checkpoint, unless it was made. `rows` are diagnosed.
    Further rules to act by have programs of their own, so that nothing that trains is compiled anew for them.
    """
    lengths = record.settings.lengths
    folder.forget_after(training.update)
    logged = folder.read_evaluations(record.members)
    earlier = [row for row in logged if row.update < training.update]
    now = [row for row in logged if row.update == training.update]
    further = {rule: program_of(acting_by(record, rule), record.members, None) for rule in record.settings.also_act}
    count, untrained = len(program.members), program.init()
    best = Chosen.of(folder.best, BY_SCORE, count, earlier, untrained)
    selected = Chosen.of(folder.selected, BY_LOSS, count, earlier, untrained)
    del untrained
    missing = training.update > 0 and lengths.evaluates_at(training.update) and not _all_played(now, training)
    if missing:
        folder.forget_evaluation(training.update)
    else:
        for chosen in (best, selected):  # a kill may have come between the log and them
            chosen.update(now, training.state)

    display.start(record, training.update, best.known)
    with loop.stop_requests() as stop_requested:
        told = False

        def evaluate() -> None:
            evaluations = evaluate_members(program, further, record, training, rows, display, stop_requested)
            folder.append_evaluations(evaluations)
            for chosen in (best, selected):
                chosen.update(evaluations, training.state)
            display.evaluated(training.update, evaluations)

        def waiting(update: int) -> None:
            nonlocal told
            display.waiting()
            if stop_requested() and not told:
                told = True
                display.note(f"stopping after update {update}, to save; Ctrl-C once more stops at once")

        def preparing(stage: int, done: int, total: int) -> None:
            display.preparing(stage + 1, program.num_stages, done, total)
            if total and stop_requested():
                loop.save(program, training, folder.last, lengths.updates)
                raise Interrupted(training.update)

        if missing:
            evaluate()
        for boundary in loop.advance(program, training, lengths, waiting, preparing, folder.pieces):
            due = lengths.evaluates_at(training.update)
            _log(boundary, program.members, training, folder, display)
            if due:
                _keep_weights(folder, training, record.settings)
            if due or stop_requested() or not training.alive.any():
                loop.save(program, training, folder.last, lengths.updates)
                folder.forget_pieces()
            if due and training.alive.any():
                evaluate()
            if stop_requested() and training.update < lengths.updates:
                raise Interrupted(training.update)
    if not training.alive.any():
        raise UserError("; ".join(training.stopped.values()) + ": no member is left to train")


def _keep_weights(folder: RunFolder, training: Training, settings: Settings) -> None:
    """Writes the weights at an evaluation if they are to be kept, and deletes those that are not kept any more.

    They are written before the state that a run goes on from: what a kill leaves behind is then made again.
    """
    evaluated = [*folder.kept_updates(), training.update]
    kept = settings.kept(evaluated)
    if training.update in kept:
        checkpoint.save(folder.kept(training.update), without_memory(training.state), {"update": training.update})
    for made in evaluated:
        if made not in kept:
            folder.kept(made).unlink(missing_ok=True)


def _all_played(evaluations: Sequence[Evaluation], training: Training) -> bool:
    """Whether every member that is left is among the evaluations, without a failure."""
    played = {row.member.index for row in evaluations if row.failure is None}
    return played >= set(np.flatnonzero(training.alive).tolist())


def _log(
    boundary: Boundary, members: Sequence[Member], training: Training, folder: RunFolder, display: Display
) -> None:
    """Writes a row of metrics for every member that is left, and says which one has diverged."""
    for line in boundary.diverged:
        display.note(line)
    rows = [
        Measurement(training.update, member, of_member(boundary.metrics, member), boundary.updates_per_second)
        for member in members
        if training.alive[member.index]
    ]
    folder.append_measurements(rows)
    display.logged(training.update, rows)


def _record(request: Request, dataset: Dataset) -> RunRecord:
    """Everything that determines the run, and where it is made."""
    environment = environment_of(request.settings, dataset.info)
    return RunRecord(
        algorithm=request.method,
        config=request.config,
        sweep=request.sweep,
        settings=_settled(request.settings, environment),
        environment=environment,
        reference=reference_of(dataset.info, environment),
        dataset=dataset.info,
        transitions=dataset.size,
        data_return=data_return(dataset),
        spec=dataset.spec,
        command=shlex.join(["diffcps", *sys.argv[1:]] if Path(sys.argv[0]).name == "diffcps" else sys.argv),
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, **_commit()},
        init_from=None if request.start is None else request.start.weights,
        device=f"{jax.devices()[0].device_kind} x {jax.device_count()}",
    )


def _commit() -> dict[str, str]:
    """The commit of the library, where it is used from its repository; with a "+" where files differ from it."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        root, commit = (
            subprocess.run([*git, "rev-parse", what], capture_output=True, text=True, check=True).stdout.strip()
            for what in ("--show-toplevel", "HEAD")
        )
        if Path(root) != here.parents[2]:  # another repository, which holds an environment with the package
            return {}
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit[:10] + "+" * bool(changed.stdout)}


def _settled(settings: Settings, environment: EnvironmentSpec | None) -> Settings:
    """With the environment that is meant, arguments and all."""
    return dataclasses.replace(settings, env=environment or NO_ENVIRONMENT, env_kwargs=None, max_episode_steps=None)


def data_return(dataset: Dataset) -> float | None:
    """Mean return of the episodes in the data, in the environment's units: what a policy has to beat.

    None where rewards were transformed or there are none, and where the rows are not in the order of the episodes.
    """
    account, reading = dataset.info.account, dataset.info.reading
    if reading.reward != "none" or "reward" in account.absent or not account.ordered:
        return None
    return float(np.mean(episode_returns(dataset)[0])) / reading.reward_scale


def _settle(folder: RunFolder, record: RunRecord, resume: bool, may_grow: bool) -> RunRecord:
    """Writes config.json, or compares it with the one that is there; returns what stands in it.

    `may_grow`: more updates than before will do.
    """
    if folder.config.exists():
        if not resume:
            raise UserError(
                f"{folder.path}: holds a run already; add --resume to go on with it, or choose another --out"
            )
        before = folder.read_record()
        for name, old, new in differences(before, record):
            raise UserError(_changed(folder, name, old, new))
        old, new = before.settings.updates, record.settings.updates
        if new < old or (new > old and not may_grow):
            why = "more is allowed" if may_grow else f"the stages of {record.algorithm} are shares of all updates"
            raise UserError(_changed(folder, "updates", old, new) + f" ({why})")
        settings = dataclasses.replace(before.settings, updates=new)
        record = dataclasses.replace(before, settings=settings, environment=record.environment)  # it may be a function
    folder.write_record(record)
    return record


def _changed(folder: RunFolder, name: str, old: Json, new: Json) -> str:
    return f"{folder.path}: cannot resume with another {name}: the run has {old}, you gave {new}"


def _report(folder: RunFolder, record: RunRecord) -> Summary:
    from diffcps.run.curves import save_curves

    members = record.members
    found = summarise(record, folder.read_evaluations(members), folder.read_measurements(members))
    summary = dataclasses.replace(found, peak_memory=PeakMemory(peak_of_host(), peak_of_devices()))
    folder.write_summary(summary)
    save_curves(folder, folder.curves)
    return summary


def summarise(record: RunRecord, evaluations: Sequence[Evaluation], measurements: Sequence[Measurement]) -> Summary:
    """The four scores of every member, with normalised values where the references are known, what was selected, and
    which bounds are not met."""
    rows: list[MemberScores] = []
    for member in record.members:
        own = [row for row in evaluations if row.member.index == member.index]
        scores = _scores(record, own)
        rows.append(MemberScores(member, scores, _selected(own), _also(record, own, scores)))
    return Summary(
        algorithm=record.algorithm,
        environment=None if record.environment is None else str(record.environment),
        updates=record.settings.updates,
        data_return=record.data_return,
        reference=record.reference,
        members=tuple(rows),
        failed_evaluations=len({row.update for row in evaluations if row.failure is not None}),
        unmet_bounds=tuple(unmet_bounds(record, measurements)),
    )


def _also(record: RunRecord, own: Sequence[Evaluation], scores: Scores | None) -> dict[str, Scores]:
    """The same evaluations by each further rule."""
    if scores is None:
        return {}
    returns = {
        rule: {row.update: row.also[rule].score for row in own if rule in row.also} for rule in record.settings.also_act
    }
    return {rule: scores_of_the_same(scores, by_update, record.reference) for rule, by_update in returns.items()}


def _selected(own: Sequence[Evaluation]) -> Selected | None:
    losses = [(loss, -row.update) for row in own if (loss := row.selection_loss) is not None]
    if not losses:
        return None
    loss, update = min(losses)
    return Selected(-update, loss)


def _scores(record: RunRecord, own: Sequence[Evaluation]) -> Scores | None:
    scored = [(row.update, row.score, row.selection_loss) for row in own if row.score is not None]
    if not scored:
        return None
    updates, scores, losses = zip(*scored, strict=True)
    return four_scores(updates, scores, losses, record.reference)
