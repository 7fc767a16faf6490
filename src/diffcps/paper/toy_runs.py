"""The toy problems' policies: trained, made to act, and scored; and what an exact denoiser would do in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffcps.algorithms import ALGORITHMS
from diffcps.data.scaling import Scaling
from diffcps.diffusion.schedule import make_schedule
from diffcps.envs import toy
from diffcps.envs.make import make_environment
from diffcps.paper.job import Job
from diffcps.paper.methods import METHODS
from diffcps.paper.ring import ring_scores
from diffcps.records import fields
from diffcps.records.folder import RunFolder
from diffcps.run.policy import Policy, load_policy, load_run
from diffcps.run.progress import Live
from diffcps.run.train import train
from diffcps.types import Configuration, Dataset, EnvAction, NetAction

Points = Float[np.ndarray, "n 2"]

SAMPLING: Mapping[str, object] = {"stochastic": True, "action_choice": "sample"}
"""Set where a method has the field: a Gaussian policy is sampled instead of reduced to its mean, and a policy draws one
action instead of choosing among candidates by Q, so that the policy itself is seen."""
WIDTHS = ("width", "second_width", "vae_width")
"""Fields that take the plan's width."""
STITCHING_STEPS = 5
"""Diffusion steps on the stitching problem (section 4.1: T = 5)."""
NEAR_GOAL = 0.2
"""An episode has reached the goal when it ends within this distance of it."""
ACTING_SEED = 1_000
"""Seed of the draws of trained policies, none of training's."""
BLOCK = 500
"""Actions drawn with the exact denoiser at once."""


@dataclass(frozen=True)
class RingRow:
    """The scores of a set of actions on the noisy circle (`ring.RingScores`): a row of figures 1 and 5 to 8."""

    method: str
    """Its name in the library, or where else the actions come from."""
    num_steps: int | None
    """Diffusion steps T."""
    seed: int | None
    on_data: float
    covered_data: float
    on_ring: float
    inside: float
    covered_angles: float


@dataclass(frozen=True)
class PathRow:
    """Episodes of a policy on the stitching problem, or the data's: a row of figure 9."""

    method: str
    seed: int | None
    episodes: int
    return_mean: float
    return_std: float
    return_max: float
    reached_goal: float
    """Share of the episodes that end within NEAR_GOAL of the goal."""


class Trajectories(NamedTuple):
    """Episodes of the stitching problem."""

    position: Float[np.ndarray, "episodes steps 2"]
    """The first position and that after each step."""
    returns: Float[np.ndarray, " episodes"]


# --- Training ---


@cache
def circle() -> Dataset:
    """The noisy circle's data."""
    return toy.noisy_circle()


def has_steps(method: str) -> bool:
    """Whether a method has diffusion steps."""
    return "num_steps" in fields.field_types(ALGORITHMS[method].Config)


def config_of(job: Job, method: str, changes: Mapping[str, object], num_steps: int | None = None) -> Configuration:
    """The method's `Config` on a toy problem, with what differs there."""
    kind = ALGORITHMS[method].Config
    shared = {**SAMPLING, **dict.fromkeys(WIDTHS, job.plan.width)}
    if num_steps is not None:
        shared["num_steps"] = num_steps
    values = {name: value for name, value in shared.items() if name in fields.field_types(kind)}
    return fields.build(kind, values | dict(changes) | (dict(METHODS[method].fast) if job.fast else {}))


def trained(job: Job, name: str, config: Configuration, dataset: Dataset) -> list[Policy]:
    """The policies of all seeds from the run folder `name`, trained to the end: each new draw is by ACTING_SEED."""
    path, settings = job.out / "runs" / name, job.plan.settings()
    if _finished(job, path, config, dataset):
        job.say(f"{name}: trained already")
    else:
        job.say(f"{name}: training, {settings.updates:,} updates, {len(settings.seeds)} seeds")
        with Live() as live:
            train(config, dataset, settings, out=path, resume=True, display=live)
    return [load_policy(path, "last", member=i, seed=ACTING_SEED + seed) for i, seed in enumerate(settings.seeds)]


def _finished(job: Job, path: Path, config: Configuration, dataset: Dataset) -> bool:
    """Whether the folder holds exactly this run, with all its updates (`train` refuses any other run in it)."""
    folder = RunFolder(path)
    if not (folder.config.exists() and folder.last.exists()):
        return False
    record = folder.read_record()
    if (record.config, record.settings.seeds, record.dataset.sha256) != (config, job.plan.seeds, dataset.info.sha256):
        return False
    return set(load_run(path, "last").updates) == {job.plan.updates}


# --- The noisy circle ---


def points_of(dataset: Dataset) -> EnvAction:
    """The data's actions in the environment's units, "n 2"."""
    return Scaling.of(dataset.info).action(NetAction(dataset.action))


def circle_actions(job: Job, method: str, num_steps: int | None) -> Float[np.ndarray, "seeds n 2"]:
    """Actions of every seed's policy on the noisy circle, in the environment's units."""
    name = method if num_steps is None else f"{method}-T{num_steps}"
    config = config_of(job, method, METHODS[method].circle, num_steps)
    observation = np.zeros((job.plan.num_actions, 1), np.float32)
    return np.stack([policy(observation) for policy in trained(job, name, config, circle())])


def ring_rows(
    method: str, num_steps: int | None, seeds: Sequence[int | None], actions: Float[np.ndarray, "seeds n 2"]
) -> list[RingRow]:
    """The scores of each seed's actions."""
    data = points_of(circle())
    return [
        RingRow(method, num_steps, seed, *ring_scores(action, data))
        for seed, action in zip(seeds, actions, strict=True)
    ]


def exact_denoiser_actions(dataset: Dataset, num_steps: int, num_actions: int, seed: int = 0) -> EnvAction:
    """What diffusion BC would do without any error of learning: DDPM's reverse chain with the data's own denoiser.

    E[x_0 | x_t] is a mean over the data's actions x^j with weights proportional to
    exp(-||x_t - sqrt(abar_t) x^j||^2 / (2 (1 - abar_t))), clipped as in the methods. Returns "num_actions 2", in the
    environment's units. What differs from the data is the error of `num_steps` steps.
    """
    schedule = make_schedule("vp", num_steps)
    rng = np.random.default_rng(seed)
    data = np.asarray(dataset.action, np.float32)

    def expected_x0(x: np.ndarray, t: int) -> np.ndarray:
        scale, variance = np.sqrt(schedule.alpha_bar[t]), 1.0 - schedule.alpha_bar[t]
        # ||x||^2 is the same for all data and drops out of the weights.
        logits = (scale * x @ data.T - 0.5 * scale**2 * np.sum(data**2, axis=1)) / variance
        weight = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weight @ data / weight.sum(axis=1, keepdims=True)

    blocks: list[np.ndarray] = []
    for first in range(0, num_actions, BLOCK):
        x = rng.standard_normal((min(BLOCK, num_actions - first), data.shape[1]), np.float32)
        for t in reversed(range(num_steps)):
            mean = schedule.posterior_x0_weight[t] * np.clip(expected_x0(x, t), -1.0, 1.0)
            mean += schedule.posterior_xt_weight[t] * x
            x = mean if t == 0 else mean + schedule.posterior_std[t] * rng.standard_normal(x.shape, np.float32)
        blocks.append(np.clip(x, -1.0, 1.0))
    return Scaling.of(dataset.info).action(NetAction(np.concatenate(blocks)))


# --- Stitching ---


def logged_trajectories(dataset: Dataset) -> Trajectories:
    """The trajectories of the stitching data."""
    position = np.concatenate([dataset.observation, dataset.next_observation], axis=1).reshape(-1, toy.HORIZON, 4)
    return Trajectories(
        np.concatenate([position[..., :2], position[:, -1:, 2:]], axis=1),
        np.asarray(dataset.reward, float).reshape(-1, toy.HORIZON).sum(axis=1),
    )


def stitching_trajectories(job: Job, method: str, dataset: Dataset) -> list[Trajectories]:
    """Episodes of every seed's policy on the stitching problem."""
    config = config_of(job, method, METHODS[method].stitching, STITCHING_STEPS if has_steps(method) else None)
    return [play(policy, job.plan.episodes) for policy in trained(job, f"stitching-{method}", config, dataset)]


def play(policy: Policy, num_episodes: int) -> Trajectories:
    """Episodes of a policy on the stitching problem, all from the same start."""
    with ExitStack() as stack:
        environments = [stack.enter_context(closing(make_environment(toy.STITCHING))) for _ in range(num_episodes)]
        position = [np.stack([environment.reset(seed=0)[0] for environment in environments])]
        returns = np.zeros(num_episodes)
        for _ in range(toy.HORIZON):
            action = np.clip(policy(position[-1]), -1.0, 1.0)
            steps = [environment.step(a) for environment, a in zip(environments, action, strict=True)]
            position.append(np.stack([step[0] for step in steps]))
            returns += [float(step[1]) for step in steps]
    return Trajectories(np.stack(position, axis=1), returns)


def path_row(method: str, seed: int | None, shown: Trajectories) -> PathRow:
    """What the episodes come to."""
    distance = np.linalg.norm(shown.position[:, -1] - np.asarray(toy.GOAL), axis=1)
    return PathRow(
        method=method,
        seed=seed,
        episodes=len(shown.returns),
        return_mean=float(shown.returns.mean()),
        return_std=float(shown.returns.std()),
        return_max=float(shown.returns.max()),
        reached_goal=float(np.mean(distance < NEAR_GOAL)),
    )
