"""One run: an algorithm, a dataset, an environment, a folder."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.data import load_dataset
from diffcps.data.scaling import Scaling
from diffcps.data.summary import episode_returns
from diffcps.envs.make import check_fits
from diffcps.evaluation.rollout import roll_out
from diffcps.evaluation.scores import four_scores
from diffcps.run import fields
from diffcps.run.folder import RunFolder
from diffcps.tasks.references import normalised_score, reference_scores
from diffcps.training.loop import Act, Interrupted, Lengths, fit
from diffcps.training.members import Member, Program, a_device_per_core, expand
from diffcps.types import Dataset, DatasetInfo, Display, Real, UserError

FORMAT = 1
"""Version of the run folder's layout."""
RESUMABLE = ("updates", "command", "versions", "device", "data_return")
"""What may differ between a run and its continuation."""


@dataclass(frozen=True)
class Settings:
    """How a run is made, whatever the algorithm."""

    env: str | None = None
    """Gymnasium environment for the scores; by default the one that the dataset names; the word none: no scores."""
    updates: int = 30_000
    """Updates in all."""
    eval_every: int = 5_000
    """Updates between two evaluations, each of which is a checkpoint."""
    log_every: int = 500
    """Updates between two rows of metrics."""
    episodes: int = 10
    """Episodes per member in each evaluation."""
    eval_seed: int = 100
    """Episode e of an evaluation starts from seed `eval_seed` + e."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, trained together; with swept fields every combination is trained with every seed."""


def algorithm_of(config: Any) -> tuple[str, ModuleType]:
    """Name and module of the algorithm whose `Config` this is."""
    for name, module in ALGORITHMS.items():
        if isinstance(config, module.Config):
            return name, module
    raise UserError(f"{type(config).__name__} is no algorithm's Config: pass, say, diffcps.algorithms.diffcps.Config()")


def train(
    config: Any,
    dataset: Dataset | str | Path = "builtin",
    settings: Settings | None = None,
    *,
    out: str | Path,
    sweep: Mapping[str, Sequence[float]] | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Trains every seed (and every combination of swept values) in one program, evaluates, writes the run folder `out`.

    `config` is an algorithm's `Config`; `dataset` what `load_dataset` takes or returns. Returns the run's summary: the
    four scores of each member, as in `summary.json`. With `resume` an interrupted run goes on where it stopped.

    Raises `UserError` for bad input and `Interrupted` after Ctrl-C, when all is saved.
    """
    from diffcps.run.progress import Silent

    a_device_per_core()  # before `make` computes anything
    settings = settings or Settings()
    sweep = {name: tuple(values) for name, values in (sweep or {}).items()}
    display = display or Silent()
    name, module = algorithm_of(config)
    _check(config, settings, sweep)
    if not isinstance(dataset, Dataset):
        dataset = load_dataset(dataset)
    environment = environment_of(settings, dataset.info)
    if environment is not None:
        check_fits(dataset.spec, dataset.info, environment)

    members = expand(settings.seeds, sweep)
    folder = RunFolder(out)
    record = _record(name, config, settings, sweep, dataset, environment)
    with folder.locked():
        _claim(folder, record, resume, may_grow=not module.make(config, dataset.spec).stages)
        spec = dataset.spec
        program = Program(lambda swept: module.make(dataclasses.replace(config, **swept), spec), members, dataset)
        lengths = Lengths(settings.updates, settings.eval_every, settings.log_every)
        scaling = Scaling.of(dataset.info)

        def evaluate(act: Act) -> tuple[np.ndarray, np.ndarray]:
            assert environment is not None
            played = roll_out(
                scaling.wrap(act),
                environment,
                len(members),
                settings.episodes,
                seed=settings.eval_seed,
                on_step=display.evaluating,
            )
            return played.returns, played.lengths

        score = None if environment is None else evaluate
        try:
            fit(program, members, dataset.size, lengths, folder, score, display, resume)
        except Interrupted:  # it has something to show, too
            _report(folder, members)
            raise
        return _report(folder, members)


def _report(folder: RunFolder, members: Sequence[Member]) -> dict[str, Any]:
    from diffcps.run.curves import save_curves

    summary = summarise(folder, members)
    folder.write_json(folder.summary, summary)
    save_curves(folder.path, folder.curves)
    return summary


def data_return(dataset: Dataset) -> float | None:
    """Mean return of the episodes in the data: what a policy has to beat. None where rewards were transformed."""
    if dataset.info.reward_transform != "none":
        return None
    return float(np.mean(episode_returns(dataset)[0]))


def reference_of(info: DatasetInfo, environment: str | None) -> tuple[float, float] | None:
    """Returns of normalised score 0 and 100: the dataset's own, else D4RL's for the environment, else unknown."""
    if environment is None:
        return None
    if info.reference_min is not None and info.reference_max is not None:
        return info.reference_min, info.reference_max
    return reference_scores(environment)


def environment_of(settings: Settings, info: DatasetInfo) -> str | None:
    """The environment that scores the run; None where the user said `none`, or neither user nor dataset names one."""
    environment = settings.env or info.environment
    return None if environment == "none" else environment


def _check(config: Any, settings: Settings, sweep: Mapping[str, Sequence[float]]) -> None:
    kind = type(config)
    known = fields.field_types(kind)
    for name, values in sweep.items():
        if name not in known:
            raise UserError(fields.unknown_name(name, known))
        if known[name] != Real:
            raise UserError(f"{name} cannot be swept: it shapes the program; only real-valued fields can be a list")
        if len(values) != len(set(values)) or not values:
            raise UserError(f"{name} is swept over {list(values)}: give each value once")
        for value in values:
            fields.build(kind, {name: value})
    fields.build(kind, {field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    fields.build(Settings, {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


def _record(name, config, settings: Settings, sweep, dataset: Dataset, environment: str | None) -> dict[str, Any]:
    """Everything that determines the run, as it is written into config.json."""
    reference = reference_of(dataset.info, environment)
    return {
        "format": FORMAT,
        "algorithm": name,
        "config": fields.to_json(config),
        "sweep": {name: [fields.json_value(value) for value in values] for name, values in sweep.items()},
        **fields.to_json(settings),
        "env": environment,
        "reference": None if reference is None else list(reference),
        "dataset": fields.to_json(dataset.info),
        "transitions": dataset.size,
        "data_return": data_return(dataset),
        "spec": dataset.spec._asdict(),
        "command": shlex.join(["diffcps", *sys.argv[1:]])
        if Path(sys.argv[0]).name == "diffcps"
        else shlex.join(sys.argv),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("diffcps", "jax", "equinox", "optax", "numpy", "gymnasium", "mujoco")},
        },
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
    }


def _claim(folder: RunFolder, record: dict[str, Any], resume: bool, may_grow: bool) -> None:
    """Writes config.json, or compares it with the one that is there. `may_grow`: more updates than before will do."""
    if folder.config.exists():
        if not resume:
            raise UserError(
                f"{folder.path}: holds a run already; add --resume to go on with it, or choose another --out"
            )
        before = folder.read_config()
        for name in record:
            if name in RESUMABLE:
                continue
            old, new = before.get(name), record[name]
            if isinstance(new, dict) and isinstance(old, dict):
                changed = [key for key in new if new[key] != old.get(key) and (name, key) != ("dataset", "source")]
                if changed:
                    raise UserError(_changed(folder, changed[0], old.get(changed[0]), new[changed[0]]))
            elif new != old:
                raise UserError(_changed(folder, name, old, new))
        more = record["updates"] - before["updates"]
        if more < 0 or (more > 0 and not may_grow):
            why = "more is allowed" if may_grow else f"the stages of {record['algorithm']} are shares of all updates"
            raise UserError(_changed(folder, "updates", before["updates"], record["updates"]) + f" ({why})")
        record = {**before, "updates": record["updates"]}
    folder.write_json(folder.config, record)


def _changed(folder: RunFolder, name: str, old: Any, new: Any) -> str:
    return f"{folder.path}: cannot resume with another {name}: the run has {old}, you gave {new}"


def members_of(record: Mapping[str, Any]) -> list[Member]:
    """The members of a run, from its config.json."""
    sweep = {name: [float(value) for value in values] for name, values in record["sweep"].items()}
    return expand(record["seeds"], sweep)


def summarise(folder: RunFolder, members: Sequence[Member]) -> dict[str, Any]:
    """The four scores of every member, with normalised values where the references are known."""
    record = folder.read_config()
    evaluations = folder.rows(folder.evaluations)
    rows = []
    for member in members:
        own = [row for row in evaluations if row["member"] == member.index and row["score"] is not None]
        scores = four_scores(own)
        row: dict[str, Any] = dict(member.columns)
        if scores is not None:
            for kind, score in scores._asdict().items():
                row[kind] = None if score is None else _score_json(score, record["reference"])
        rows.append(row)
    shared = {name: record.get(name) for name in ("algorithm", "env", "updates", "data_return", "reference")}
    return {**shared, "members": rows}


def _score_json(score, reference) -> dict[str, Any]:
    normalised = None if reference is None else float(normalised_score(score.score, tuple(reference)))
    return {"updates": list(score.updates), "score": score.score, "normalised": normalised}
