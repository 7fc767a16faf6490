"""AdaptDiffuser: a planner that learns from the best of its own plans (arXiv:2302.01877).

    planner       Diffuser: L(theta) = E[w (x_0 - x_theta(x_t, t))^2], a value J_phi, plans pulled by its gradient
    dynamics      L(psi) = E[|f_psi(s, a) - (s' - s, r)|^2]
    generation    plans x ~ p_theta pulled by J_phi, from observations of the data (algorithm 1)
    discriminator follows x from its first observation as f_psi answers, s~_{k+1} = s~_k + f_psi(s~_k, a_k); keeps it if
                  mean_k |s~_k - s_k|^2 is small and sum_k r_psi(s~_k, a_k) is more than the data got from there
    fine-tuning   L(theta) on batches half of what was followed and kept, half of data; and again, round by round

Where this differs from the authors' program: docs/algorithms/adapt_diffuser.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffcps.diffusion.schedule import Schedule, make_schedule
from diffcps.networks.mlp import MLP
from diffcps.networks.temporal_unet import TemporalUNet, TrajectoryValue
from diffcps.optim import Trained, as_one_vector, clipped_adam, minimise, start
from diffcps.policies import guided
from diffcps.policies.guided import (
    DIAGNOSED,
    Control,
    Draws,
    action_on,
    diagnosis,
    draw,
    goal_of,
    guided_acting,
    known_ends,
    known_from,
    loss_weight,
    new_networks,
    planner_step,
    value_step,
)
from diffcps.policies.plans import (
    PlanScale,
    Scale,
    WindowLabels,
    Windows,
    by_deviation,
    by_limits,
    draw_windows,
    label_windows,
    steps_read,
    unscaled,
    windows_at,
)
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.rl.windows import Starts, draw_starts, starts_first, window
from diffcps.types import (
    EPISODES,
    Algorithm,
    Count,
    Dataset,
    Key,
    Metric,
    Metrics,
    Real,
    Scalar,
    Spec,
    Stage,
    Transition,
    UpdateIndex,
    UserError,
)

CITATION = """@inproceedings{liang2023adaptdiffuser,
  title = {{AdaptDiffuser}: Diffusion Models as Adaptive Self-evolving Planners},
  author = {Liang, Zhixuan and Mu, Yao and Ding, Mingyu and Ni, Fei and Tomizuka, Masayoshi and Luo, Ping},
  booktitle = {International Conference on Machine Learning},
  year = {2023},
  eprint = {2302.01877},
  archivePrefix = {arXiv}
}"""

DRAWN_AT_ONCE = 64
"""Plans of a generation that are drawn side by side."""
COMPARED = 1024
"""Windows of the data that are followed, to know how well that can be done."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters. Those of the planner are Diffuser's on Hopper and Walker2d unless said (the authors publish
    their program for block stacking alone, and say that locomotion is guided as in Diffuser)."""

    rounds: int = 1
    """Generations of plans, each with a fine-tuning behind it."""
    training_share: int = 1000
    """Share of the updates that planner, value and dynamics get, in proportion to the fine-tunings."""
    tuning_share: int = 200
    """Share of each fine-tuning (third party: 1,000,000 and 200,000)."""
    generated: int = 20_000
    """Plans of a generation, of which the discriminator keeps some (third party: 50,000 kept)."""
    generated_in_batch: Count = 32
    """Kept plans in each batch of a fine-tuning, the others are data (authors: half of a batch)."""
    max_error: Real = 5.0
    """A plan is kept if it can be followed with an error below this, in units of the median error with which the data's
    own windows can (authors: in the simulator, to within 1.02 at each step)."""
    dynamics_width: int = 256
    """Units per hidden layer of the dynamics, of which there are two."""
    dynamics_learning_rate: Real = 3e-4
    """Adam's rate for the dynamics."""
    dynamics_batch_size: int = 256
    """Transitions per update of the dynamics."""
    horizon: int = 32
    """Steps of a plan; 2 ^ (levels - 1) must divide it (Diffuser: 4 on HalfCheetah; 128, 256, 384 in mazes)."""
    num_steps: int = 20
    """Diffusion steps T, on the cosine schedule (Diffuser: 64 and 256 in mazes)."""
    plans: int = 64
    """Plans that are drawn for an observation, of which the one of the highest value is taken."""
    guide_steps: Count = 2
    """Steps along the value's gradient in each diffusion step; 0: no value, neither trained nor asked."""
    guide_scale: Real = 0.1
    """Factor on the gradient, beside the posterior's variance."""
    unguided_steps: Count = 2
    """Last diffusion steps that no gradient moves."""
    goal: Literal["none", "rewarded"] = "none"
    """What a plan must end at: nothing, or the data's mean rewarded observation."""
    goal_at_rest: bool = True
    """Whether the second half of a goal, velocities, is set to zero."""
    replan_every: Count = 1
    """Steps of the environment between plans; 0: one plan for an episode."""
    control: Control = "actions"
    """What follows a plan: its own actions, or, for point masses alone, the way to its next position and velocity."""
    warm_start_steps: Count = 0
    """Diffusion steps from which a new plan is made of the last one, moved on by the steps taken; 0: from noise, by all
    T steps."""
    discount: Real = 0.997
    """Discount gamma of the returns that the value predicts."""
    termination_penalty: Real = 100.0
    """Subtracted from the last reward of an episode that truly ends, in those returns."""
    padded_below: Count = 1000
    """Windows go on, with zeros, behind the ends of episodes of fewer steps than this; 0: never."""
    scale: Literal["deviation", "limits"] = "deviation"
    """Actions and observations are brought to mean 0 and deviation 1, or to [-1, 1] (authors, in block stacking)."""
    clip_plans: bool = False
    """Whether predicted plans are clipped to [-1, 1] in each diffusion step."""
    action_weight: Real = 10.0
    """Weight of the first action in the model's loss."""
    planner_learning_rate: Real = 2e-4
    """Adam's rate for the model, before and in the fine-tuning (authors: one rate for both; third party: 2e-4)."""
    value_learning_rate: Real = 2e-4
    """Adam's rate for the value."""
    value_interval: int = 5
    """Updates of the model per update of the value."""
    batch_size: int = 64
    """Windows per update (authors: 32, gradients of two batches averaged)."""
    ema_rate: Real = 0.005
    """Rate at which the moving averages follow, which plan."""
    ema_every: int = 10
    """Updates of a network between steps of its moving average."""
    ema_start: Count = 2000
    """Updates of a network, counted anew in each fine-tuning, during which its moving average is a copy."""
    width: int = 32
    """Channels of the networks' first level, and sinusoids of the diffusion step."""
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """Channels of each level, in proportion to `width`."""
    attention: bool = False
    """Linear attention in the model."""


class Dynamics(eqx.Module):
    """What follows an action: the change of the observation and the reward, each with mean 0 and deviation 1."""

    network: MLP
    """f_psi of (s, a), scaled as plans are."""

    def __init__(self, spec: Spec, width: int, key: Key):
        size = spec.observation_size
        self.network = MLP((size + spec.action_size, width, width, size + 1), key, jax.nn.relu)

    def __call__(self, scaled: Float[Array, "*b channel"]) -> Float[Array, "*b obs_and_1"]:
        return self.network(scaled)


class State(NamedTuple):
    """What is carried from update to update."""

    planner: Trained[TemporalUNet]
    """x_theta."""
    target_planner: TemporalUNet
    """Moving average of it, which plans."""
    value: Trained[TrajectoryValue] | None
    """J_phi."""
    target_value: TrajectoryValue | None
    dynamics: Trained[Dynamics]
    scale: PlanScale
    """Of the data that the training began with."""
    change: Scale
    """Of the changes from an observation to the next one and of the reward behind them, in the data's units."""
    goal: Float[Array, "*m obs"]
    """In the data's units; not used without a goal."""
    kept: Float[Array, "*m"]
    """Share of the last generation that was kept."""
    tuned: Int[Array, "*m"]
    """Updates made since then."""


class Generated(NamedTuple):
    """What the rows are labelled with in a fine-tuning, and the plans that were made for it."""

    of_data: WindowLabels
    plans: Windows
    """All that were made, as they were followed, in the data's units."""
    kept: Starts
    """Which of them the discriminator keeps."""


class Followed(NamedTuple):
    """What came of plans, as the dynamics answer, in the data's units."""

    action: Float[Array, "*b h act"]
    observation: Float[Array, "*b h obs"]
    returns: Float[Array, "*b"]
    error: Float[Array, "*b"]
    """Mean squared distance to the planned observations, scaled."""


# --- The dynamics ---


def changes(before: Float[Array, "*b obs"], after: Float[Array, "*b obs"], reward: Float[Array, "*b"]):
    """What the dynamics predict, in the data's units."""
    return jnp.concatenate([after - before, reward[..., None]], axis=-1)


def dynamics_loss(dynamics: Dynamics, scale: PlanScale, change: Scale, batch: Transition) -> Scalar:
    """E[|f_psi(s, a) - (s' - s, r)|^2], the mean over dimensions, scaled: 1 for an f that knows the mean alone."""
    wanted = change.into(changes(batch.observation, batch.next_observation, batch.reward))
    return jnp.mean(jnp.square(dynamics(scale.into(batch.action, batch.observation)) - wanted))


def followed(
    dynamics: Dynamics,
    scale: PlanScale,
    change: Scale,
    action: Float[Array, "*b h act"],
    observation: Float[Array, "*b h obs"],
    control: Control,
) -> Followed:
    """Plans in the data's units, followed to their end from their first observations."""

    def step(now: Float[Array, "*b obs"], since: Int[Array, ""]):
        chosen = action_on(action, observation, now, since, control)
        predicted = change.back(dynamics(scale.into(chosen, now)))
        return now + predicted[..., :-1], (chosen, now, predicted[..., -1])

    steps = jnp.arange(action.shape[-2])
    _, (actions, reached, rewards) = jax.lax.scan(step, observation[..., 0, :], steps)
    reached = jnp.moveaxis(reached, 0, -2)
    distance = jnp.square(scale.observation.into(reached) - scale.observation.into(observation))
    return Followed(jnp.moveaxis(actions, 0, -2), reached, jnp.sum(rewards, axis=0), jnp.mean(distance, axis=(-2, -1)))


def usual_error(
    dynamics: Dynamics,
    scale: PlanScale,
    change: Scale,
    dataset: Dataset,
    labels: WindowLabels,
    key: Key,
    config: Config,
) -> Scalar:
    """The median error of windows of the data that are followed; those that end with their episode are left out.

    NaN, with which no plan is kept, where there is no other.
    """
    row = draw_starts(labels.start, key, COMPARED)
    read = windows_at(dataset, labels, row, config.horizon)
    found = followed(dynamics, scale, change, read.action, read.observation, config.control)
    return jnp.nanmedian(jnp.where(labels.left[row] >= config.horizon - 1, found.error, jnp.nan))


def discriminate(found: Followed, logged: Float[Array, "*b"], max_error: Real) -> Bool[Array, "*b"]:
    """Whether a plan is kept: it could be followed, and pays more than what was logged from there (section 4.3)."""
    return (found.error < max_error) & (found.returns > logged)


# --- The data ---


def label(dataset: Dataset, config: Config) -> WindowLabels:
    """Where windows start, and the returns to go."""
    return label_windows(dataset, config.horizon, config.padded_below, config.discount, config.termination_penalty)


def window_returns(dataset: Dataset, labels: WindowLabels, row: Int[Array, " b"], horizon: int) -> Float[Array, " b"]:
    """The sums of the logged rewards in the windows that start at these rows."""
    read = window(row, labels.left[row], horizon)
    return jnp.sum(dataset.reward[read.row] * read.inside, axis=-1)


def generate(config: Config, schedule: Schedule, state: State, dataset: Dataset, key: Key) -> Generated:
    """Plans, as they were followed, one each from observations at which windows start; and which are kept."""
    key_data, key_plans = jax.random.split(key)
    labels, of_dynamics = label(dataset, config), (state.dynamics.model, state.scale, state.change)
    max_error = config.max_error * usual_error(*of_dynamics, dataset, labels, key_data, config)

    def several(number: Int[Array, ""]) -> tuple[Windows, Bool[Array, " b"]]:
        key_start, key_noise = jax.random.split(jax.random.fold_in(key_plans, number))
        row = draw_starts(labels.start, key_start, DRAWN_AT_ONCE)
        known = known_from(config, state, dataset.observation[row][:, None])
        shape = DRAWN_AT_ONCE, 1, config.horizon, dataset.spec.action_size + dataset.spec.observation_size
        noise = jax.random.normal(key_noise, (config.num_steps, *shape))
        plans, _ = guided.plan(state.target_planner, state.target_value, schedule, known, noise, config)
        found = followed(*of_dynamics, *state.scale.back(plans[:, 0]), config.control)
        kept = discriminate(found, window_returns(dataset, labels, row, config.horizon), max_error)
        return Windows(found.action, found.observation, found.returns), kept

    drawn = jax.lax.map(several, jnp.arange(-(-config.generated // DRAWN_AT_ONCE)))
    plans, kept = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: config.generated], drawn)
    return Generated(labels, plans, starts_first(kept))


def mixed(dataset: Dataset, labels: Generated, key: Key, config: Config) -> Windows:
    """Kept plans first, then windows of the data; these alone where the discriminator kept none."""
    key_data, key_plans = jax.random.split(key)
    of_data = draw_windows(dataset, labels.of_data, key_data, config.batch_size, config.horizon)
    row = draw_starts(labels.kept, key_plans, config.generated_in_batch)
    any_kept = labels.kept.count[0] > 0

    def joined(data, plans):
        first = data[: config.generated_in_batch]
        chosen = jnp.where(any_kept, plans[row], first)
        return jnp.concatenate([chosen, data[config.generated_in_batch :]])

    return jax.tree.map(joined, of_data, labels.plans)


def check(config: Config, spec: Spec) -> None:
    """Raises `UserError` for settings that exclude one another."""
    guided.check(config, spec)
    if config.generated_in_batch > config.batch_size:
        raise UserError(
            f"generated_in_batch is {config.generated_in_batch}, of a batch of {config.batch_size}: take at most "
            f"{config.batch_size}"
        )


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """AdaptDiffuser for the given sizes. Real-valued fields of `config` may be traced arrays."""
    check(config, spec)
    schedule = make_schedule("cosine", config.num_steps)
    optimiser = as_one_vector(clipped_adam(config.planner_learning_rate, float("inf")))
    value_optimiser = as_one_vector(clipped_adam(config.value_learning_rate, float("inf")))
    dynamics_optimiser = clipped_adam(config.dynamics_learning_rate, float("inf"))
    channels = spec.action_size + spec.observation_size
    weight = loss_weight(config.horizon, spec, config.action_weight)
    drawn = partial(draw, config.num_steps)

    def init(key: Key) -> State:
        key_planner, key_value, key_dynamics = jax.random.split(key, 3)
        planner, value = new_networks(config, channels, key_planner, key_value)
        return State(
            planner=start(optimiser, planner),
            target_planner=planner,
            value=None if value is None else start(value_optimiser, value),
            target_value=value,
            dynamics=start(dynamics_optimiser, Dynamics(spec, config.dynamics_width, key_dynamics)),
            scale=PlanScale(unscaled(spec.action_size), unscaled(spec.observation_size)),
            change=unscaled(spec.observation_size + 1),
            goal=jnp.zeros(spec.observation_size),
            kept=jnp.zeros(()),
            tuned=jnp.asarray(0),
        )

    # --- the planner, the value and the dynamics ---

    def begin(state: State, dataset: Dataset, key: Key) -> tuple[State, WindowLabels]:
        by = by_deviation if config.scale == "deviation" else by_limits
        scale = PlanScale(by(dataset.action), by(dataset.observation))
        change = by_deviation(changes(dataset.observation, dataset.next_observation, dataset.reward))
        goal = goal_of(dataset, config.goal_at_rest)
        return state._replace(scale=scale, change=change, goal=goal), label(dataset, config)

    def batch(dataset: Dataset, key: Key) -> tuple[Windows, Transition]:
        key_windows, key_rows = jax.random.split(key)
        windows = draw_windows(dataset, dataset.labels, key_windows, config.batch_size, config.horizon)
        return windows, sample_transitions(dataset, key_rows, config.dynamics_batch_size)

    def update_planner(state: State, batch: Windows, draws: Draws, count: Int[Array, ""]) -> tuple[State, Metrics]:
        scaled = state.scale.into(batch.action, batch.observation)
        known, average = known_ends(config, spec, scaled), state.target_planner
        planner, target_planner, metrics = planner_step(
            config, optimiser, state.planner, average, schedule, scaled, known, weight, draws, count
        )
        return state._replace(planner=planner, target_planner=target_planner), metrics

    def update(
        state: State, batch: tuple[Windows, Transition], draws: Draws, index: UpdateIndex
    ) -> tuple[State, Metrics]:
        windows, rows = batch
        state, of_planner = update_planner(state, windows, draws, index.count)
        scaled = state.scale.into(windows.action, windows.observation)
        known, average = known_ends(config, spec, scaled), state.target_value
        value, target_value, of_value = value_step(
            config, value_optimiser, state.value, average, schedule, scaled, known, windows.value, draws, index
        )
        dynamics, loss, _, norm = minimise(
            dynamics_optimiser, state.dynamics, dynamics_loss, state.scale, state.change, rows
        )
        metrics = of_planner | of_value | {"dynamics/loss": loss, "dynamics/grad_norm": norm}
        return state._replace(value=value, target_value=target_value, dynamics=dynamics), metrics

    # --- generation, discriminator, fine-tuning ---

    def begin_tuning(state: State, dataset: Dataset, key: Key) -> tuple[State, Generated]:
        made = generate(config, schedule, state, dataset, key)
        share = made.kept.count[0] / made.kept.row.shape[0]
        planner = start(optimiser, state.planner.model)
        return state._replace(planner=planner, kept=share, tuned=jnp.asarray(0)), made

    def tuning_batch(dataset: Dataset, key: Key) -> Windows:
        return mixed(dataset, dataset.labels, key, config)

    def tune(state: State, batch: Windows, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        state, metrics = update_planner(state, batch, draws, state.tuned)
        return state._replace(tuned=state.tuned + 1), metrics | {"generated/kept": state.kept}

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        key_start, key_draw = jax.random.split(key)
        read = draw_windows(rows, label(rows, config), key_start, DIAGNOSED, config.horizon)
        draws = drawn(read, key_draw)
        of_dynamics = dynamics_loss(state.dynamics.model, state.scale, state.change, transitions(rows))
        of_plans = diagnosis(config, spec, schedule, weight, state, read, draws)
        return of_plans | {"dynamics/loss": of_dynamics}

    act, in_episode = guided_acting(config, spec, schedule)
    tuning = Stage(config.tuning_share, tuning_batch, tune, begin_tuning, draw=drawn, keep=True)
    return Algorithm(
        init,
        (
            Stage(config.training_share, batch, update, begin, draw=lambda read, key: drawn(read[0], key)),
            *[tuning] * config.rounds,
        ),
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
    "dynamics/loss": Metric("Squared error of the dynamics", "dynamics loss", "log"),
    "generated/kept": Metric("Share of the generated plans that are kept", "plans kept"),
    "planner/grad_norm": Metric("Norm of the model's gradient", scale="log"),
    "value/grad_norm": Metric("Norm of the value's gradient", scale="log"),
    "dynamics/grad_norm": Metric("Norm of the dynamics' gradient", scale="log"),
    "selection/loss": Metric("Weighted loss of the plans", scale="log"),
}
