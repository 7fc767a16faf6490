"""D4RL's locomotion data by its recipe: one online SAC run for each robot, from which all its datasets are made.

    random          uniform actions
    medium          the first snapshot that scores `MEDIUM`, its actions sampled
    medium-replay   what that run had stored up to there
    expert          the snapshot of the whole run with the best return, its actions sampled
    full-replay     all that the run stored
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from diffcps.collect import sac
from diffcps.collect.files import (
    Rows,
    episode_returns,
    first_rows,
    holds,
    join,
    load_rows,
    provenance,
    save_rows,
    write_d4rl,
)
from diffcps.collect.walk import walk
from diffcps.envs.make import make_environment
from diffcps.tasks.references import reference_scores
from diffcps.training import checkpoint
from diffcps.types import Spec, UserError

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
FAST_ROWS = 900


class Snapshot(NamedTuple):
    """An actor of the run, and what it scored."""

    path: Path
    iteration: int
    step: int
    returns: list[float]
    score: float
    """Normalised score of the mean return."""


def collect_locomotion(
    task: str,
    out: Path,
    *,
    transitions: int,
    seed: int,
    fast: bool,
    resume: bool,
    say: Callable[[str], None],
    environment: str | None = None,
) -> Path:
    """Locomotion data (`hopper-medium-v2`, ...) into `out`, an HDF5 file in D4RL's layout, with a picture beside it.

    `transitions` is the number of rows of each policy, so that medium-expert has up to twice as many; of the replay
    datasets it is the most that is kept. The online run lies beside `out` and serves all datasets of its robot,
    environment and seed: what is there of it is used, with `resume` or without. `fast` is a smoke run.

    Raises `UserError` for an unknown task, where `out` exists (unless `resume`, and it is this collection), and where
    the run ends without a medium snapshot.
    """
    robot, level = _parts(task)
    environment_id = environment or ENVIRONMENTS[robot]
    reference = reference_scores(environment_id)
    if reference is None:
        raise UserError(f"{environment_id}: no reference scores, by which levels are found; name a version of {robot}")
    sizes = FAST if fast else FULL
    transitions = min(transitions, FAST_ROWS) if fast else transitions
    asked = {"task": task, "env_id": environment_id, "seed": seed, "asked_transitions": transitions}
    if out.exists():
        if resume and holds(out, asked):
            say(f"{out} is complete")
            return out
        raise UserError(f"{out}: exists; remove it or name another file with --out")

    name = re.sub(r"\W+", "-", environment_id.removeprefix("diffcps/")).lower()
    folder = out.parent / f"{name}-sac-seed{seed}{'-fast' if fast else ''}"
    with closing(make_environment(environment_id)) as simulator:
        spec = sac.spec_of(simulator)
        data = getattr(simulator.unwrapped, "data", None)
        if not hasattr(data, "qpos"):
            raise UserError(f"{environment_id}: not a MuJoCo environment")
        used: list[Snapshot] = []
        snapshots: list[Snapshot] = []

        def whole_run() -> Snapshot:
            nonlocal snapshots
            snapshots = _train(simulator, environment_id, reference, sizes, folder, seed, lambda _: False, say)
            return max(snapshots, key=lambda snapshot: np.mean(snapshot.returns))

        def up_to_medium() -> Snapshot:
            nonlocal snapshots
            snapshots = _train(
                simulator, environment_id, reference, sizes, folder, seed, lambda s: s.score >= sizes.medium, say
            )
            found = next((snapshot for snapshot in snapshots if snapshot.score >= sizes.medium), None)
            if found is None:
                best = max(snapshot.score for snapshot in snapshots)
                raise UserError(
                    f"{folder}: no snapshot of {sizes.steps:,} steps has the medium level, a normalised score of "
                    f"{sizes.medium:.1f}; the best has {best:.1f}. Take another --seed"
                )
            return found

        def played(role: Role, snapshot: Snapshot | None = None) -> Rows:
            return _play(simulator, spec, role, snapshot, folder, transitions, sizes.part, seed, say)

        match level:
            case "random":
                rows = first_rows(played("random"), transitions)
            case "medium":
                used = [up_to_medium()]
                rows = first_rows(played("medium", used[0]), transitions)
            case "medium-replay":
                used = [up_to_medium()]
                rows = first_rows(join(sac.transitions_of(folder, used[0].iteration)), transitions)
            case "expert":
                used = [whole_run()]
                rows = first_rows(played("expert", used[0]), transitions)
            case "full-replay":
                used = [whole_run()]
                iterations = sizes.steps // sizes.config.iteration_steps
                rows = first_rows(join(sac.transitions_of(folder, iterations)), transitions)
            case _:
                used = [up_to_medium(), whole_run()]
                medium, expert = played("medium", used[0]), played("expert", used[1])
                rows = join([_whole_episodes(medium, transitions), first_rows(expert, transitions)])

    attributes = provenance(task, environment_id, _recipe(level, sizes), seed) | {
        "asked_transitions": transitions,
        "ref_min_score": reference[0],
        "ref_max_score": reference[1],
        "action_low": np.full(spec.action_size, -1.0, np.float32),
        "action_high": np.full(spec.action_size, 1.0, np.float32),
        "sac": json.dumps(dataclasses.asdict(sizes.config)),
        "snapshots": json.dumps([_words(snapshot) for snapshot in used]),
    }
    _draw(out, task, rows, snapshots, used, sizes.medium, reference)
    write_d4rl(out, rows, attributes)
    return out


def _parts(task: str) -> tuple[str, str]:
    """`hopper-medium-replay-v2` -> hopper, medium-replay."""
    found = re.fullmatch(rf"({'|'.join(ENVIRONMENTS)})-({'|'.join(LEVELS)})-v2", task)
    if found is None:
        raise UserError(
            f"unknown task {task!r}: a locomotion task is ROBOT-LEVEL-v2, with robot {', '.join(ENVIRONMENTS)} "
            f"and level {', '.join(LEVELS)}"
        )
    return found[1], found[2]


def _train(
    simulator: gymnasium.Env,
    environment_id: str,
    reference: tuple[float, float],
    sizes: Sizes,
    folder: Path,
    seed: int,
    enough: Callable[[Snapshot], bool],
    say: Callable[[str], None],
) -> list[Snapshot]:
    """Goes on with the run until a snapshot is `enough` or all steps are made; returns all snapshots, in order."""
    there = _snapshots(folder)
    if any(map(enough, there)) or (there and there[-1].step >= sizes.steps):
        return there

    def look(iteration: int, actor: SquashedGaussian) -> bool:
        step = iteration * sizes.config.iteration_steps
        if step % sizes.every:
            return False
        returns = _evaluate(actor, environment_id, sizes.episodes, seed, iteration)
        low, high = reference
        snapshot = Snapshot(
            path=folder / "actors" / f"{iteration:06d}.safetensors",
            iteration=iteration,
            step=step,
            returns=returns.tolist(),
            score=float(100.0 * (returns.mean() - low) / (high - low)),
        )
        snapshot.path.parent.mkdir(exist_ok=True)
        sac.save_actor(snapshot.path, actor, {"snapshot": _words(snapshot)})
        say(f"step {step:,}: return {returns.mean():.0f} ± {returns.std():.0f}, score {snapshot.score:.1f}")
        return enough(snapshot)

    say(f"online SAC in {environment_id}, at most {sizes.steps:,} steps, in {folder}")
    sac.train(simulator, sizes.config, folder, steps=sizes.steps, seed=seed, on_iteration=look)
    return _snapshots(folder)


def _snapshots(folder: Path) -> list[Snapshot]:
    """Those that are on disk."""
    paths = sorted((folder / "actors").glob("*.safetensors"))
    return [Snapshot(path=path, **checkpoint.information(path)["snapshot"]) for path in paths]


def _words(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON, without the place where it lies."""
    return {name: value for name, value in snapshot._asdict().items() if name != "path"}


def _evaluate(actor: SquashedGaussian, environment_id: str, episodes: int, seed: int, iteration: int) -> np.ndarray:
    """Returns of whole episodes with sampled actions, as they will be collected."""
    from diffcps.evaluation.rollout import roll_out

    rng = np.random.default_rng((seed, iteration, 1))

    def act(observation: np.ndarray, step: int) -> np.ndarray:
        size = actor.network.layers[-1].bias.shape[0] // 2
        return np.asarray(sac.sample(actor, observation, rng.standard_normal((1, episodes, size), np.float32)))

    return roll_out(act, environment_id, 1, episodes, seed=EVALUATION_SEED).returns[0]


def _play(
    simulator: gymnasium.Env,
    spec: Spec,
    role: Role,
    snapshot: Snapshot | None,
    folder: Path,
    transitions: int,
    part: int,
    seed: int,
    say: Callable[[str], None],
) -> Rows:
    """At least `transitions` rows of whole episodes of a snapshot (None: of uniform actions), kept in parts."""
    iteration = 0 if snapshot is None else snapshot.iteration
    actor = None if snapshot is None else sac.load_actor(snapshot.path)[0]
    parts: list[Rows] = []
    while (count := sum(len(rows["rewards"]) for rows in parts)) < transitions:
        path = folder / f"{role}-{iteration:06d}" / f"{len(parts):06d}.npz"
        if not path.exists():
            rng = np.random.default_rng((seed, iteration, 2, ROLES.index(role), len(parts)))
            act = sac.uniform(spec, rng) if actor is None else sac.sampled(actor, spec, rng)
            say(f"collecting: {count:,} of {transitions:,} transitions")
            save_rows(path, walk(simulator, act, steps=part, seed=int(rng.integers(2**31)), whole=True))
        parts.append(load_rows(path))
    return join(parts)


def _whole_episodes(rows: Rows, count: int) -> Rows:
    """The episodes that end within the first `count` rows; the first `count` rows where none does."""
    ends = np.flatnonzero(rows["terminals"] | rows["timeouts"]) + 1
    ends = ends[ends <= count]
    return first_rows(rows, int(ends[-1]) if len(ends) else count)


def _recipe(level: str, sizes: Sizes) -> str:
    """What was done, in words."""
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


def _draw(
    out: Path,
    task: str,
    rows: Rows,
    snapshots: list[Snapshot],
    used: list[Snapshot],
    medium: float,
    reference: tuple[float, float],
) -> None:
    from diffcps.collect.picture import save_collection_figure

    low, high = reference
    save_collection_figure(
        out.with_suffix(".png"),
        title=f"{task}: {len(rows['rewards']):,} transitions collected",
        steps=np.array([snapshot.step for snapshot in snapshots]),
        evaluations=np.array([snapshot.returns for snapshot in snapshots]),
        used=[snapshot.step for snapshot in used],
        medium=low + (high - low) * medium / 100.0,
        returns=episode_returns(rows),
    )
