"""Plans of actions and observations, drawn by guided sampling and followed: what Diffuser and its descendants share.

Reference: Diffuser (arXiv:2205.09991), with the details of its program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from diffcps.diffusion.guidance import Known, pulled, sample_known, with_gradient
from diffcps.diffusion.process import add_noise
from diffcps.diffusion.schedule import Schedule
from diffcps.networks.temporal_unet import TemporalUNet, TrajectoryValue, check_horizon
from diffcps.optim import Trained, copied_then_averaged, minimise
from diffcps.policies.plans import (
    Planner,
    PlanScale,
    Windows,
    acting,
    best_of,
    check_warm_start,
    knowing,
    plan_loss,
    towards,
    warm_noise,
)
from diffcps.types import Count, Dataset, EpisodeActor, Key, Metrics, Real, Scalar, Spec, UpdateIndex, UserError

Control = Literal["actions", "waypoints"]

DIAGNOSED = 256
"""Windows that a diagnosis measures."""


@runtime_checkable
class Guided(Protocol):
    """The fields of a config that say how plans are learnt, drawn and followed."""

    @property
    def horizon(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def attention(self) -> bool: ...
    @property
    def ema_every(self) -> int: ...
    @property
    def ema_start(self) -> Count: ...
    @property
    def ema_rate(self) -> Real: ...
    @property
    def value_interval(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def multipliers(self) -> tuple[int, ...]: ...
    @property
    def plans(self) -> int: ...
    @property
    def guide_steps(self) -> int: ...
    @property
    def guide_scale(self) -> Real: ...
    @property
    def unguided_steps(self) -> int: ...
    @property
    def goal(self) -> Literal["none", "rewarded"]: ...
    @property
    def replan_every(self) -> int: ...
    @property
    def control(self) -> Control: ...
    @property
    def warm_start_steps(self) -> int: ...
    @property
    def clip_plans(self) -> bool: ...


@runtime_checkable
class Planning(Protocol):
    """The fields of a state that plan."""

    @property
    def target_planner(self) -> TemporalUNet: ...
    @property
    def target_value(self) -> TrajectoryValue | None: ...
    @property
    def scale(self) -> PlanScale: ...
    @property
    def goal(self) -> Float[Array, "*m obs"]: ...


State = TypeVar("State", bound=Planning)


# --- Randomness ---


class Draws(NamedTuple):
    """All randomness of one update."""

    t: Int[Array, " b"]
    """Diffusion steps, uniform on 0..T-1."""
    eps: Float[Array, "b h channel"]
    value_t: Int[Array, " b"]
    """Of the value's loss."""
    value_eps: Float[Array, "b h channel"]


def draw(num_steps: int, read: Windows, key: Key) -> Draws:
    """The random numbers of one update on these windows."""
    keys = jax.random.split(key, 4)
    shape = *read.action.shape[:2], read.action.shape[2] + read.observation.shape[2]
    t, value_t = (jax.random.randint(key, shape[:1], 0, num_steps) for key in keys[:2])
    eps, value_eps = (jax.random.normal(key, shape) for key in keys[2:])
    return Draws(t, eps, value_t, value_eps)


# --- Losses ---


def loss_weight(horizon: int, spec: Spec, action_weight: Real) -> Float[Array, "h channel"]:
    """1, and another one for the first action."""
    weight = jnp.ones((horizon, spec.action_size + spec.observation_size))
    return weight.at[0, : spec.action_size].set(action_weight)


def value_loss(
    value: TrajectoryValue,
    schedule: Schedule,
    plan: Float[Array, "b h channel"],
    known: Known,
    target: Float[Array, " b"],
    t: Int[Array, " b"],
    eps: Float[Array, "b h channel"],
) -> tuple[Scalar, Scalar]:
    """E[(J(known(x_t), t) - target)^2]; also the mean of J."""
    predicted = value(known(add_noise(schedule, plan, t[:, None], eps)), t)
    return jnp.mean(jnp.square(predicted - target)), jnp.mean(predicted)


def diagnosis(
    config: Guided,
    spec: Spec,
    schedule: Schedule,
    weight: Float[Array, "h channel"],
    state: Planning,
    windows: Windows,
    draws: Draws,
) -> Metrics:
    """Both losses of the moving averages on these windows."""
    scaled = state.scale.into(windows.action, windows.observation)
    known = known_ends(config, spec, scaled)
    loss, error = plan_loss(state.target_planner, schedule, scaled, known, weight, draws.t, draws.eps)
    metrics = {"plan/loss": loss, "plan/error": error, "selection/loss": loss}
    if state.target_value is None:
        return metrics
    of_value, mean = value_loss(
        state.target_value, schedule, scaled, known, windows.value, draws.value_t, draws.value_eps
    )
    return metrics | {"value/loss": of_value, "value/mean": mean}


# --- Updates ---


def new_networks(
    config: Guided, channels: int, key_planner: Key, key_value: Key
) -> tuple[TemporalUNet, TrajectoryValue | None]:
    """The planner, and the value of plans where they are guided."""
    planner = TemporalUNet(channels, config.width, config.multipliers, key_planner, config.attention)
    if not config.guide_steps:
        return planner, None
    return planner, TrajectoryValue(channels, config.width, config.multipliers, config.horizon, key_value)


Stepped = tuple[Trained[TrajectoryValue] | None, TrajectoryValue | None, Metrics]
"""A value network after an update, its moving average, and what is looked at."""


def planner_step(
    config: Guided,
    optimiser: optax.GradientTransformation,
    planner: Trained[TemporalUNet],
    target: TemporalUNet,
    schedule: Schedule,
    scaled: Float[Array, "b h channel"],
    known: Known,
    weight: Float[Array, "h channel"],
    draws: Draws,
    count: Int[Array, ""],
) -> tuple[Trained[TemporalUNet], TemporalUNet, Metrics]:
    """One step on the plans' loss, and its moving average; `count` steps were made before."""
    planner, loss, error, norm = minimise(
        optimiser, planner, plan_loss, schedule, scaled, known, weight, draws.t, draws.eps
    )
    target = copied_then_averaged(target, planner.model, count, config.ema_every, config.ema_start, config.ema_rate)
    return planner, target, {"plan/loss": loss, "plan/error": error, "planner/grad_norm": norm}


def value_step(
    config: Guided,
    optimiser: optax.GradientTransformation,
    value: Trained[TrajectoryValue] | None,
    target: TrajectoryValue | None,
    schedule: Schedule,
    scaled: Float[Array, "b h channel"],
    known: Known,
    returns: Float[Array, " b"],
    draws: Draws,
    index: UpdateIndex,
) -> Stepped:
    """At every `value_interval`-th update one step on the value's loss, and its moving average; nothing without one."""
    if value is None or target is None:
        return value, target, {}

    def step(value: Trained[TrajectoryValue], target: TrajectoryValue) -> Stepped:
        arguments = schedule, scaled, known, returns, draws.value_t, draws.value_eps
        value, loss, mean, norm = minimise(optimiser, value, value_loss, *arguments)
        count = index.count // config.value_interval
        target = copied_then_averaged(target, value.model, count, config.ema_every, config.ema_start, config.ema_rate)
        return value, target, {"value/loss": loss, "value/mean": mean, "value/grad_norm": norm}

    def keep(value: Trained[TrajectoryValue], target: TrajectoryValue) -> Stepped:
        return value, target, dict.fromkeys(("value/loss", "value/mean", "value/grad_norm"), jnp.float32(jnp.nan))

    return index.every(config.value_interval, step, keep, value, target)


# --- What is known ---


def goal_of(dataset: Dataset, at_rest: bool) -> Float[Array, " obs"]:
    """The mean observation over the rows of positive reward; the second half zero for a goal at rest."""
    rewarded = dataset.reward > 0.0
    mean = jnp.sum(jnp.where(rewarded[:, None], dataset.observation, 0.0), axis=0) / jnp.maximum(jnp.sum(rewarded), 1)
    half = dataset.spec.observation_size // 2
    return mean.at[half:].set(0.0) if at_rest else mean


def known_from(config: Guided, state: Planning, observation: Float[Array, "*b obs"]) -> Known:
    """Of plans that begin at these observations (in the data's units), and end at the goal if there is one."""
    scale = state.scale.observation
    return knowing(scale.into(observation), None if config.goal == "none" else scale.into(state.goal))


def known_ends(config: Guided, spec: Spec, scaled: Float[Array, "b h channel"]) -> Known:
    """Of (scaled) windows: the first observation, and the last one where plans have goals."""
    observation = scaled[..., spec.action_size :]
    return knowing(observation[:, 0], None if config.goal == "none" else observation[:, -1])


# --- Planning ---


def plan(
    model: TemporalUNet,
    value: TrajectoryValue | None,
    schedule: Schedule,
    known: Known,
    noise: Float[Array, "steps *b k h channel"],
    config: Guided,
) -> tuple[Float[Array, "*b k h channel"], Float[Array, "*b k"] | None]:
    """Scaled plans by guided sampling (algorithm 1), and their values at the input of the last step's last guidance."""
    pull = None
    if value is not None and config.guide_steps:
        guide = with_gradient(value)
        pull = pulled(schedule, guide, known, config.guide_scale, config.guide_steps, config.unguided_steps)
    clip = 1.0 if config.clip_plans else float("inf")
    return sample_known(schedule, model, known, noise, clip, pull)


def action_on(
    action: Float[Array, "*b h act"],
    waypoint: Float[Array, "*b h obs"],
    observation: Float[Array, "*b obs"],
    since: Int[Array, ""],
    control: Control,
) -> Float[Array, "*b act"]:
    """What follows a plan (in the data's units) so many steps after it was made; its end is held, at rest."""
    last = action.shape[-2] - 1
    if control == "actions":
        return jnp.clip(action[..., jnp.minimum(since, last), :], -1.0, 1.0)
    at_rest = jnp.where(since < last, 0.0, 1.0)
    return jnp.clip(towards(waypoint[..., jnp.minimum(since + 1, last), :], observation, at_rest), -1.0, 1.0)


Acting = Callable[[State, Float[Array, "*b obs"], Key], Float[Array, "*b act"]]


def guided_acting(config: Guided, spec: Spec, schedule: Schedule) -> tuple[Acting[State], EpisodeActor[State] | None]:
    """Follows the best of `plans` guided plans, in the order and for the time that the config says (`plans.acting`)."""
    shape = config.horizon, spec.action_size + spec.observation_size

    def best(
        state: State, observation: Float[Array, "*b obs"], noise: Float[Array, "steps *b k h channel"]
    ) -> Float[Array, "*b h channel"]:
        known = known_from(config, state, observation[..., None, :])
        return best_of(*plan(state.target_planner, state.target_value, schedule, known, noise, config))

    def noise_for(observation: Float[Array, "*b obs"], steps: int, key: Key) -> Float[Array, "steps *b k h channel"]:
        return jax.random.normal(key, (steps, *observation.shape[:-1], config.plans, *shape))

    def new(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b h channel"]:
        return best(state, observation, noise_for(observation, config.num_steps, key))

    def renewed(state: State, observation: Float[Array, "*b obs"], last, key: Key) -> Float[Array, "*b h channel"]:
        noise = noise_for(observation, config.warm_start_steps, key)
        return best(state, observation, warm_noise(schedule, last[..., None, :, :], noise))

    def follow(
        state: State, planned: Float[Array, "*b h channel"], observation: Float[Array, "*b obs"], since: Int[Array, ""]
    ) -> Float[Array, "*b act"]:
        return action_on(*state.scale.back(planned), observation, since, config.control)

    return acting(Planner(new, renewed, follow), shape, config.replan_every, config.warm_start_steps > 0)


# --- What is refused ---


def check(config: Guided, spec: Spec) -> None:
    """Raises `UserError` for settings that exclude one another."""
    check_horizon(config.horizon, config.multipliers)
    if not config.guide_steps and config.plans > 1:
        raise UserError(
            f"plans is {config.plans}, but without guidance (guide_steps 0) no value chooses among them: take plans 1"
        )
    if config.control == "waypoints" and spec.observation_size != 2 * spec.action_size:
        raise UserError(
            f"control is waypoints, which drives positions and velocities of as many dimensions as an action, "
            f"{spec.action_size}; an observation has {spec.observation_size} numbers: take control actions"
        )
    check_warm_start(config.warm_start_steps, config.num_steps)


def check_data(dataset: Dataset, config: Guided) -> None:
    """Raises `UserError` where waypoints would not be in the units of the actions, or nothing shows a goal."""
    info = dataset.info
    boxes = {*info.action_low, *(-high for high in info.action_high)}
    if config.control == "waypoints" and (info.observation_mean is not None or boxes - {-1.0}):
        raise UserError(
            f"{info.source}: control is waypoints, which takes observations as they are and actions in [-1, 1]; these "
            "are normalised or have another box: leave out --normalise-observation, or take control actions"
        )
    if config.goal == "rewarded" and not (np.asarray(dataset.reward) > 0.0).any():
        raise UserError(f"{info.source}: has no positive reward, which would show where the goal is: take goal none")
