"""D4RL's locomotion data by its recipe: one online SAC run for each robot, from which all its datasets are made.

    random          uniform actions
    medium          the first snapshot that scores `MEDIUM`, its actions sampled
    medium-replay   the replay buffer of that run up to there
    expert          the snapshot of the whole run with the best return, its actions sampled
    full-replay     the replay buffer of the whole run
    medium-expert   medium, cut after its last whole episode, then expert

A run is a chain of iterations with a snapshot and an evaluation every so many steps; it lies beside the file, and stops
where the dataset asked for needs no more of it. Snapshots and stored transitions are the same whether it was
interrupted, and whatever was asked for first. docs/collecting.md lists what differs from D4RL's scripts.

Reference: D4RL (arXiv:2004.07219), scripts/generation/mujoco.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from diffcps.collect import sac
from diffcps.collect.files import (
    Columns,
    episode_returns,
    first_rows,
    join,
    load_part,
    provenance,
    write_d4rl,
)
from diffcps.collect.locomotion_picture import locomotion_figure
from diffcps.collect.play import play, simulator_state
from diffcps.collect.request import CollectionRequest
from diffcps.data.writers import write_npz
from diffcps.envs.make import make_environment
from diffcps.evaluation.rollout import roll_out
from diffcps.plots import save_figure
from diffcps.storage import Json
from diffcps.tasks.references import normalised_score, reference_scores
from diffcps.training import checkpoint
from diffcps.types import EnvAction, EnvObservation, Spec, UserError

if TYPE_CHECKING:
    import gymnasium

    from diffcps.networks.squashed import SquashedGaussian

ENVIRONMENTS = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "ant": "diffcps/Ant-v2",
}
"""Where a robot's data are collected unless another environment is named. Ant-v5's observations are not D4RL's."""
LEVELS = ("random", "medium", "medium-replay", "expert", "medium-expert", "full-replay")
Role = Literal["random", "medium", "expert"]
ROLES = get_args(Role)
"""What plays episodes. Medium and expert have random numbers of their own, should they be the same snapshot."""
MEDIUM = 100.0 / 3.0
"""Normalised score (D4RL's references) of the medium level: a third of the way from random to expert."""
EVALUATION_SEED = 100
"""Of the first episode of an evaluation; the same for all snapshots."""


class Sizes(NamedTuple):
    """How much is done."""

    config: sac.Config
    steps: int
    """Of a whole run."""
    every: int
    """Steps between snapshots."""
    episodes: int
    """Of an evaluation."""
    medium: float
    """Normalised score of the medium level."""
    part: int
    """Steps collected at a time."""


FULL = Sizes(sac.Config(), steps=1_000_000, every=10_000, episodes=10, medium=MEDIUM, part=10_000)
FAST = Sizes(
    sac.Config(batch_size=32, width=32, random_steps=200, iteration_steps=200),
    steps=800,
    every=200,
    episodes=2,
    medium=-np.inf,
    part=300,
)
"""A smoke run: whatever the first snapshot does is medium."""
FAST_TRANSITIONS = 900


class Snapshot(NamedTuple):
    """An actor of the run, and what it scored."""

    path: Path
    iteration: int
    """Iterations of the run before it."""
    step: int
    returns: tuple[float, ...]
    """Of the episodes of its evaluation."""
    score: float
    """Normalised score of the mean return."""

    def to_json(self) -> dict[str, Json]:
        """What is stored with the actor: all but the place where it lies."""
        return {
            "iteration": self.iteration,
            "step": self.step,
            "returns": list(self.returns),
            "score": self.score,
        }


@dataclass(frozen=True)
class OnlineRun:
    """The online run of a robot: where it acts and lies, and how much of it is made."""

    simulator: gymnasium.Env
    environment_id: str
    spec: Spec
    reference: tuple[float, float]
    """Returns of normalised score 0 and 100."""
    sizes: Sizes
    folder: Path
    seed: int
    say: Callable[[str], None]


def collect_locomotion(request: CollectionRequest, environment: str | None = None) -> Path:
    """Locomotion data (`hopper-medium-v2`, ...) into an HDF5 file in D4RL's layout, with a picture beside it.

    The request's `transitions` are the rows of each policy, so that medium-expert has up to twice as many; of the
    replay datasets they are the most that is kept. The online run lies beside the file and serves all datasets of its
    robot, environment and seed: what is there of it is used, with `resume` or without. `environment` is another version
    of the robot's.

    Raises `UserError` for an unknown task, where the file exists (unless `resume`, and it is this collection), and
    where the run ends without a medium snapshot.
    """
    robot, level = _robot_and_level(request.task)
    environment_id = environment or ENVIRONMENTS[robot]
    reference = reference_scores(environment_id)
    if reference is None:
        raise UserError(f"{environment_id}: no reference scores, by which levels are found; name a version of {robot}")
    sizes = FAST if request.fast else FULL
    request = request.limited(FAST_TRANSITIONS)
    asked = {"env_id": environment_id, "seed": request.seed, "asked_transitions": request.transitions}
    if request.is_complete({"task": request.task, **asked}):
        return request.out

    name = re.sub(r"\W+", "-", environment_id.removeprefix("diffcps/")).lower()
    folder = request.out.parent / f"{name}-sac-seed{request.seed}{'-fast' if request.fast else ''}"
    with closing(make_environment(environment_id)) as simulator:
        spec = sac.spec_of(simulator)
        if simulator_state(simulator) is None:
            raise UserError(f"{environment_id}: not a MuJoCo environment")
        run = OnlineRun(simulator, environment_id, spec, reference, sizes, folder, request.seed, request.say)
        columns, used = _collect_level(run, level, request.transitions)

    recipe = _recipe(level, sizes)
    attributes = provenance(request.task, environment_id, recipe, request.seed, reference, spec.action_size) | {
        "asked_transitions": request.transitions,
        "sac": json.dumps(dataclasses.asdict(sizes.config)),
        "snapshots": json.dumps([snapshot.to_json() for snapshot in used]),
    }
    _draw(request, run, columns, used)
    write_d4rl(request.out, columns, attributes)
    return request.out


def medium_snapshot(snapshots: list[Snapshot], medium: float) -> Snapshot | None:
    """The first snapshot with a normalised score of `medium` or more."""
    return next((snapshot for snapshot in snapshots if snapshot.score >= medium), None)


def expert_snapshot(snapshots: list[Snapshot]) -> Snapshot:
    """The snapshot of the best mean return; the first of equal ones."""
    return max(snapshots, key=lambda snapshot: np.mean(snapshot.returns))


def _robot_and_level(task: str) -> tuple[str, str]:
    """`hopper-medium-replay-v2` -> hopper, medium-replay."""
    found = re.fullmatch(rf"({'|'.join(ENVIRONMENTS)})-({'|'.join(LEVELS)})-v2", task)
    if found is None:
        raise UserError(
            f"unknown task {task!r}: a locomotion task is ROBOT-LEVEL-v2, with robot {', '.join(ENVIRONMENTS)} "
            f"and level {', '.join(LEVELS)}"
        )
    return found[1], found[2]


def _collect_level(run: OnlineRun, level: str, transitions: int) -> tuple[Columns, list[Snapshot]]:
    """The columns of a level's dataset, and the snapshots that they come from."""
    match level:
        case "random":
            return first_rows(_play_snapshot(run, "random", None, transitions), transitions), []
        case "medium":
            medium = _train_to_medium(run)
            return first_rows(_play_snapshot(run, "medium", medium, transitions), transitions), [medium]
        case "medium-replay":
            medium = _train_to_medium(run)
            return first_rows(join(sac.transitions_of(run.folder, medium.iteration)), transitions), [medium]
        case "expert":
            expert = _train_to_the_end(run)
            return first_rows(_play_snapshot(run, "expert", expert, transitions), transitions), [expert]
        case "full-replay":
            expert = _train_to_the_end(run)
            iterations = run.sizes.steps // run.sizes.config.iteration_steps
            return first_rows(join(sac.transitions_of(run.folder, iterations)), transitions), [expert]
        case _:  # medium-expert
            medium, expert = _train_to_medium(run), _train_to_the_end(run)
            of_medium = _whole_episodes(_play_snapshot(run, "medium", medium, transitions), transitions)
            of_expert = first_rows(_play_snapshot(run, "expert", expert, transitions), transitions)
            return join([of_medium, of_expert]), [medium, expert]


def _train_to_medium(run: OnlineRun) -> Snapshot:
    """The medium snapshot; the run goes on until there is one. Raises `UserError` where it ends without."""
    medium = run.sizes.medium
    snapshots = _train(run, lambda snapshot: snapshot.score >= medium)
    found = medium_snapshot(snapshots, medium)
    if found is None:
        best = max(snapshot.score for snapshot in snapshots)
        raise UserError(
            f"{run.folder}: no snapshot of {run.sizes.steps:,} steps has the medium level, a normalised score of "
            f"{medium:.1f}; the best has {best:.1f}. Take another --seed"
        )
    return found


def _train_to_the_end(run: OnlineRun) -> Snapshot:
    """The expert snapshot; the run goes on until all its steps are made."""
    return expert_snapshot(_train(run, lambda snapshot: False))


def _train(run: OnlineRun, enough: Callable[[Snapshot], bool]) -> list[Snapshot]:
    """Goes on with the run until a snapshot is `enough` or all steps are made; returns all snapshots, in order."""
    sizes, stored = run.sizes, _snapshots(run.folder)
    if any(map(enough, stored)) or (stored and stored[-1].step >= sizes.steps):
        return stored

    def take_snapshot(iteration: int, actor: SquashedGaussian) -> bool:
        step = iteration * sizes.config.iteration_steps
        if step % sizes.every:
            return False
        returns = _evaluate(run, actor, iteration)
        score = float(normalised_score(returns.mean(), run.reference))
        path = run.folder / "actors" / f"{iteration:06d}.safetensors"
        snapshot = Snapshot(path, iteration, step, tuple(returns.tolist()), score)
        sac.save_actor(path, actor, {"snapshot": snapshot.to_json()})
        run.say(f"step {step:,}: return {returns.mean():.0f} ± {returns.std():.0f}, score {score:.1f}")
        return enough(snapshot)

    run.say(f"online SAC in {run.environment_id}, at most {sizes.steps:,} steps, in {run.folder}")
    sac.train_online(
        run.simulator, sizes.config, run.folder, steps=sizes.steps, seed=run.seed, on_iteration=take_snapshot
    )
    return _snapshots(run.folder)


def _snapshots(folder: Path) -> list[Snapshot]:
    """Those that are on disk, in order."""
    return [_read_snapshot(path) for path in sorted((folder / "actors").glob("*.safetensors"))]


def _read_snapshot(path: Path) -> Snapshot:
    stored: Json = checkpoint.information(path).get("snapshot")
    match stored:
        case {
            "iteration": int(iteration),
            "step": int(step),
            "returns": list(returns),
            "score": float(score),
        }:
            return Snapshot(path, iteration, step, tuple(value for value in returns if isinstance(value, float)), score)
    raise UserError(f"{path}: not a snapshot of an online run; remove it, and what comes after it")


def _evaluate(run: OnlineRun, actor: SquashedGaussian, iteration: int) -> np.ndarray:
    """Returns (episodes,) of whole episodes with sampled actions, as they will be collected."""
    rng = np.random.default_rng((run.seed, iteration, 1))
    shape = (1, run.sizes.episodes, run.spec.action_size)

    def act(observation: EnvObservation, step: int) -> EnvAction:  # the box is [-1, 1]: `sac.spec_of` has seen to it
        return EnvAction(np.asarray(sac.sample(actor, observation, rng.standard_normal(shape, np.float32))))

    return roll_out(act, run.environment_id, 1, run.sizes.episodes, seed=EVALUATION_SEED).returns[0]


def _play_snapshot(run: OnlineRun, role: Role, snapshot: Snapshot | None, transitions: int) -> Columns:
    """At least `transitions` rows of whole episodes of a snapshot (None: of uniform actions), kept in parts."""
    iteration = 0 if snapshot is None else snapshot.iteration
    actor = None if snapshot is None else sac.load_actor(snapshot.path)[0]
    parts: list[Columns] = []
    while (count := sum(len(part["rewards"]) for part in parts)) < transitions:
        path = run.folder / f"{role}-{iteration:06d}" / f"{len(parts):06d}.npz"
        if not path.exists():
            rng = np.random.default_rng((run.seed, iteration, 2, ROLES.index(role), len(parts)))
            policy = sac.uniform(run.spec, rng) if actor is None else sac.sampled(actor, run.spec, rng)
            run.say(f"collecting: {count:,} of {transitions:,} transitions")
            seed = int(rng.integers(2**31))
            write_npz(path, play(run.simulator, policy, steps=run.sizes.part, seed=seed, whole=True), {})
        parts.append(load_part(path))
    return join(parts)


def _whole_episodes(columns: Columns, count: int) -> Columns:
    """The episodes that end within the first `count` rows; the first `count` rows where none does."""
    ends = np.flatnonzero(columns["terminals"] | columns["timeouts"]) + 1
    ends = ends[ends <= count]
    return first_rows(columns, int(ends[-1]) if len(ends) else count)


def _recipe(level: str, sizes: Sizes) -> str:
    """What was done, for the file's attributes."""
    run = f"online SAC, {sizes.config.iteration_steps} steps then as many updates"
    medium = f"its first snapshot (every {sizes.every} steps) with a normalised score of {sizes.medium:.4g} or more"
    expert = f"its snapshot of the best mean return within {sizes.steps} steps"
    return {
        "random": "uniform actions",
        "medium": f"{run}; {medium}; actions sampled",
        "medium-replay": f"{run}; its replay buffer up to {medium}",
        "expert": f"{run}; {expert}; actions sampled",
        "full-replay": f"{run}; its replay buffer",
        "medium-expert": f"{run}; {medium}, then {expert}; actions sampled",
    }[level]


def _draw(request: CollectionRequest, run: OnlineRun, columns: Columns, used: list[Snapshot]) -> None:
    """The picture beside the file; of the online run only where something of it was used."""
    snapshots = _snapshots(run.folder) if used else []
    low, high = run.reference
    figure = locomotion_figure(
        title=f"{request.task}: {len(columns['rewards']):,} transitions collected",
        steps=np.array([snapshot.step for snapshot in snapshots]),
        evaluations=np.array([snapshot.returns for snapshot in snapshots]),
        used=[snapshot.step for snapshot in used],
        medium=low + (high - low) * run.sizes.medium / 100.0,
        returns=episode_returns(columns),
    )
    save_figure(figure, request.out.with_suffix(".png"), dpi=130)
