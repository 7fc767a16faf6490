"""Diffuser: planning with diffusion, whole trajectories denoised towards a high return (arXiv:2205.09991).

    model      L(theta) = E[w (x_0 - x_theta(x_t, t))^2],   x_0 = (a_0, s_0, ..., a_{h-1}, s_{h-1}) ~ data
    value      L(phi) = E[(J_phi(x_t, t) - sum_k gamma^k r_k)^2],   to the end of the episode
    planning   x_t <- x_t + scale Sigma_t grad J_phi(x_t, t), n times; then x_{t-1} ~ q(x_{t-1} | x_t, x_theta(x_t, t)),
               with s_0 (and a goal, if there is one) put back at each step (algorithm 1)
    acting     the first action of the plan of the highest value; then a new plan

Where this differs from the authors' program: docs/algorithms/diffuser.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.diffusion.schedule import make_schedule
from diffcps.networks.temporal_unet import TemporalUNet, TrajectoryValue
from diffcps.optim import Trained, as_one_vector, clipped_adam, start
from diffcps.policies import guided
from diffcps.policies.guided import (
    DIAGNOSED,
    Control,
    Draws,
    diagnosis,
    draw,
    goal_of,
    guided_acting,
    known_ends,
    loss_weight,
    new_networks,
    planner_step,
    value_step,
)
from diffcps.policies.plans import (
    PlanScale,
    WindowLabels,
    Windows,
    by_deviation,
    by_limits,
    draw_windows,
    label_windows,
    steps_read,
    unscaled,
)
from diffcps.types import EPISODES, Algorithm, Count, Dataset, Key, Metric, Metrics, Real, Spec, Stage, UpdateIndex

CITATION = """@inproceedings{janner2022diffuser,
  title = {Planning with Diffusion for Flexible Behavior Synthesis},
  author = {Janner, Michael and Du, Yilun and Tenenbaum, Joshua B. and Levine, Sergey},
  booktitle = {International Conference on Machine Learning},
  year = {2022},
  eprint = {2205.09991},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program on Hopper and Walker2d unless said."""

    horizon: int = 32
    """Steps of a plan; 2 ^ (levels - 1) must divide it (authors: 4 on HalfCheetah; 128, 256, 384 in mazes)."""
    num_steps: int = 20
    """Diffusion steps T, on the cosine schedule (authors: 64 and 256 in mazes)."""
    plans: int = 64
    """Plans that are drawn for an observation, of which the one of the highest value is taken."""
    guide_steps: Count = 2
    """Steps along the value's gradient in each diffusion step; 0: no value, neither trained nor asked."""
    guide_scale: Real = 0.1
    """Factor on the gradient, beside the posterior's variance."""
    unguided_steps: Count = 2
    """Last diffusion steps that no gradient moves (authors: t_stopgrad)."""
    goal: Literal["none", "rewarded"] = "none"
    """What a plan must end at: nothing, or the data's mean rewarded observation (in mazes the authors give it the
    environment's goal)."""
    goal_at_rest: bool = True
    """Whether the second half of a goal, velocities, is set to zero (authors, in mazes)."""
    replan_every: Count = 1
    """Steps of the environment between plans; 0: one plan for an episode (authors, in mazes)."""
    control: Control = "actions"
    """What follows a plan: its own actions, or, for point masses alone, the way to its next position and velocity
    (authors, in mazes)."""
    warm_start_steps: Count = 0
    """Diffusion steps from which a new plan is made of the last one, moved on by the steps taken; 0: from noise, by all
    T steps (authors)."""
    discount: Real = 0.997
    """Discount gamma of the returns that the value predicts."""
    termination_penalty: Real = 100.0
    """Subtracted from the last reward of an episode that truly ends, in those returns."""
    padded_below: Count = 1000
    """Windows go on, with zeros, behind the ends of episodes of fewer steps than this (authors: max_path_length); 0:
    never (authors, in mazes)."""
    scale: Literal["deviation", "limits"] = "deviation"
    """Actions and observations are brought to mean 0 and deviation 1, or to [-1, 1] (authors, in mazes)."""
    clip_plans: bool = False
    """Whether predicted plans are clipped to [-1, 1] in each diffusion step (authors: in mazes)."""
    action_weight: Real = 10.0
    """Weight of the first action in the model's loss (authors: 1 in mazes)."""
    planner_learning_rate: Real = 2e-4
    """Adam's rate for the model."""
    value_learning_rate: Real = 2e-4
    """Adam's rate for the value."""
    value_interval: int = 5
    """Updates of the model per update of the value (authors: 1,000,000 and 200,000 in all)."""
    batch_size: int = 64
    """Windows per update (authors: 32, gradients of two batches averaged)."""
    ema_rate: Real = 0.005
    """Rate at which the moving averages follow, which plan."""
    ema_every: int = 10
    """Updates of a network between steps of its moving average."""
    ema_start: Count = 2000
    """Updates of a network during which its moving average is a copy."""
    width: int = 32
    """Channels of the networks' first level, and sinusoids of the diffusion step."""
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """Channels of each level, in proportion to `width` (authors: 1, 4, 8 on HalfCheetah and in mazes)."""
    attention: bool = False
    """Linear attention in the model (authors: on HalfCheetah)."""


class State(NamedTuple):
    """What is carried from update to update."""

    planner: Trained[TemporalUNet]
    """x_theta."""
    target_planner: TemporalUNet
    """Moving average of it, which plans."""
    value: Trained[TrajectoryValue] | None
    """J_phi."""
    target_value: TrajectoryValue | None
    scale: PlanScale
    """Of the data that the training began with."""
    goal: Float[Array, "*m obs"]
    """In the data's units; not used without a goal."""


# --- The data ---


def label(dataset: Dataset, config: Config) -> WindowLabels:
    """Where windows start, and the returns to go."""
    return label_windows(dataset, config.horizon, config.padded_below, config.discount, config.termination_penalty)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """Diffuser for the given sizes. Real-valued fields of `config` may be traced arrays."""
    guided.check(config, spec)
    schedule = make_schedule("cosine", config.num_steps)
    optimiser = as_one_vector(clipped_adam(config.planner_learning_rate, float("inf")))
    value_optimiser = as_one_vector(clipped_adam(config.value_learning_rate, float("inf")))
    channels = spec.action_size + spec.observation_size
    weight = loss_weight(config.horizon, spec, config.action_weight)

    def init(key: Key) -> State:
        key_planner, key_value = jax.random.split(key)
        planner, value = new_networks(config, channels, key_planner, key_value)
        return State(
            planner=start(optimiser, planner),
            target_planner=planner,
            value=None if value is None else start(value_optimiser, value),
            target_value=value,
            scale=PlanScale(unscaled(spec.action_size), unscaled(spec.observation_size)),
            goal=jnp.zeros(spec.observation_size),
        )

    def begin(state: State, dataset: Dataset, key: Key) -> tuple[State, WindowLabels]:
        by = by_deviation if config.scale == "deviation" else by_limits
        scale = PlanScale(by(dataset.action), by(dataset.observation))
        return state._replace(scale=scale, goal=goal_of(dataset, config.goal_at_rest)), label(dataset, config)

    def batch(dataset: Dataset, key: Key) -> Windows:
        return draw_windows(dataset, dataset.labels, key, config.batch_size, config.horizon)

    def update(state: State, batch: Windows, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        scaled = state.scale.into(batch.action, batch.observation)
        known = known_ends(config, spec, scaled)
        planner, target_planner, of_planner = planner_step(
            config, optimiser, state.planner, state.target_planner, schedule, scaled, known, weight, draws, index.count
        )
        value, target_value, of_value = value_step(
            config, value_optimiser, state.value, state.target_value, schedule, scaled, known, batch.value, draws, index
        )
        new = {"planner": planner, "target_planner": target_planner, "value": value, "target_value": target_value}
        return state._replace(**new), of_planner | of_value

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        key_start, key_draw = jax.random.split(key)
        read = draw_windows(rows, label(rows, config), key_start, DIAGNOSED, config.horizon)
        draws = draw(config.num_steps, read, key_draw)
        return diagnosis(config, spec, schedule, weight, state, read, draws)

    act, in_episode = guided_acting(config, spec, schedule)
    return Algorithm(
        init,
        (Stage(1, batch, update, begin, draw=partial(draw, config.num_steps)),),
        act,
        diagnose,
        needs=EPISODES,
        episode_steps=steps_read(config.horizon, config.padded_below),
        in_episode=in_episode,
        check=partial(guided.check_data, config=config),
    )


METRICS = {
    "plan/loss": Metric("Weighted loss of the plans", "plan loss", "log"),
    "plan/error": Metric("Squared error of the denoised plans", "plan error", "log"),
    "value/loss": Metric("Squared error of the value", "value loss", "log"),
    "value/mean": Metric("Value of the data's noisy plans", "value"),
    "planner/grad_norm": Metric("Norm of the model's gradient", scale="log"),
    "value/grad_norm": Metric("Norm of the value's gradient", scale="log"),
    "selection/loss": Metric("Weighted loss of the plans", scale="log"),
}
