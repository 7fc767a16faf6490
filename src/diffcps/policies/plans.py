"""What planners share: windows as scaled plans "time channel", what is known of one, the step that is taken of it.

A plan's channels are the action and then the observation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffcps.diffusion.guidance import Known
from diffcps.diffusion.process import add_noise
from diffcps.diffusion.schedule import Schedule
from diffcps.networks.temporal_unet import TemporalUNet
from diffcps.rl.windows import Starts, draw_starts, places, returns_to_go, starts, starts_first, window
from diffcps.types import Dataset, EpisodeActor, Key, Real, Scalar, State, UserError

# --- Windows ---


class WindowLabels(NamedTuple):
    """What the rows of a dataset are labelled with."""

    start: Starts
    left: Int[Array, " n"]
    """Steps to the end of the episode."""
    value: Float[Array, " n"]
    """Return to go."""


class Windows(NamedTuple):
    """Windows in the data's units, with zeros behind the ends of episodes."""

    action: Float[Array, "b h act"]
    observation: Float[Array, "b h obs"]
    value: Float[Array, " b"]
    """Return to go from the first step."""


def label_windows(
    dataset: Dataset, horizon: int, padded_below: int, discount: Real, termination_penalty: Real
) -> WindowLabels:
    """Where windows start, and the returns to go, less a penalty where the episode truly ends."""
    place = places(dataset)
    start = starts_first(starts(place, horizon, padded_below))
    return WindowLabels(start, place.left, returns_to_go(dataset, discount, -termination_penalty))


def windows_at(dataset: Dataset, labels: WindowLabels, row: Int[Array, " b"], horizon: int) -> Windows:
    """The windows that start at these rows."""
    read = window(row, labels.left[row], horizon)
    inside = read.inside[..., None]
    action, observation = dataset.action[read.row], dataset.observation[read.row]
    return Windows(jnp.where(inside, action, 0.0), jnp.where(inside, observation, 0.0), labels.value[row])


def draw_windows(dataset: Dataset, labels: WindowLabels, key: Key, count: int, horizon: int) -> Windows:
    """So many windows, uniformly and with replacement."""
    return windows_at(dataset, labels, draw_starts(labels.start, key, count), horizon)


def steps_read(horizon: int, padded_below: int) -> int:
    """Rows that an episode must have for a window to start in it."""
    return 2 if padded_below > horizon else horizon + 1


# --- Scales ---


class Scale(NamedTuple):
    """x -> (x - centre) / spread, dimension by dimension; 0 where the data are constant, whatever x is in use."""

    centre: Float[Array, " d"]
    spread: Float[Array, " d"]
    """0 where the data are constant."""

    def into(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """To the scale of the networks."""
        return jnp.where(self.spread > 0.0, (x - self.centre) / jnp.where(self.spread > 0.0, self.spread, 1.0), 0.0)

    def back(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """To the units of the data."""
        return x * self.spread + self.centre


def unscaled(size: int) -> Scale:
    """As it is."""
    return Scale(jnp.zeros(size), jnp.ones(size))


def by_deviation(x: Float[Array, "n d"]) -> Scale:
    """To mean 0 and deviation 1."""
    return Scale(jnp.mean(x, axis=0), jnp.where(jnp.ptp(x, axis=0) > 0.0, jnp.std(x, axis=0), 0.0))


def by_limits(x: Float[Array, "n d"]) -> Scale:
    """To [-1, 1]."""
    low, high = jnp.min(x, axis=0), jnp.max(x, axis=0)
    return Scale((low + high) / 2.0, (high - low) / 2.0)


class PlanScale(NamedTuple):
    """Of the two parts of a plan."""

    action: Scale
    observation: Scale

    def into(self, action: Float[Array, "*b act"], observation: Float[Array, "*b obs"]) -> Float[Array, "*b channel"]:
        """One plan, scaled."""
        return jnp.concatenate([self.action.into(action), self.observation.into(observation)], axis=-1)

    def back(self, plan: Float[Array, "*b channel"]) -> tuple[Float[Array, "*b act"], Float[Array, "*b obs"]]:
        """Actions and observations in the units of the data."""
        size = self.action.centre.shape[-1]
        return self.action.back(plan[..., :size]), self.observation.back(plan[..., size:])


KNOTS = 2049
"""Points that stand for the distribution of a dimension."""


class Ranks(NamedTuple):
    """x -> 2 P(X <= x) - 1, P the data's own distribution, dimension by dimension, linear between its points.

    Beyond the data it is held. 0 where the data are constant.
    Reference: the normaliser of Decision Diffuser's program (arXiv:2211.15657); of more than `KNOTS` rows every n-th
    value is a point.
    """

    value: Float[Array, "*m d knots"]
    """Values of the data, in order."""
    share: Float[Array, "*m d knots"]
    """Share of the data that are no larger."""

    def into(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """To the scale of the networks."""
        share = jax.vmap(jnp.interp, (-1, 0, 0), -1)(x, self.value, self.share)
        return jnp.where(self._constant(), 0.0, 2.0 * share - 1.0)

    def back(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """To the units of the data; what is beyond them is cut off."""
        value = jax.vmap(jnp.interp, (-1, 0, 0), -1)((x + 1.0) / 2.0, self.share, self.value)
        return jnp.where(self._constant(), self.value[:, 0], value)

    def _constant(self) -> Bool[Array, " d"]:
        return self.value[:, 0] == self.value[:, -1]


def unranked(size: int) -> Ranks:
    """Of numbers spread evenly over [-1, 1], which are left as they are."""
    value = jnp.linspace(-1.0, 1.0, KNOTS)
    return Ranks(jnp.tile(value, (size, 1)), jnp.tile((value + 1.0) / 2.0, (size, 1)))


def by_ranks(x: Float[Array, "n d"]) -> Ranks:
    """By the distribution of these rows."""
    count = x.shape[0]
    ordered = jnp.sort(x, axis=0).T
    value = ordered[:, jnp.round(jnp.linspace(0, count - 1, KNOTS)).astype(int)]
    no_larger = jax.vmap(lambda ordered, value: jnp.searchsorted(ordered, value, side="right"))(ordered, value)
    return Ranks(value, no_larger / count)


# --- What is known ---


def knowing(observation: Float[Array, "*#b obs"], goal: Float[Array, "*#b obs"] | None = None) -> Known:
    """Puts the (scaled) current observation at a plan's first step and, if there is one, a goal at its last."""
    size = observation.shape[-1]

    def known(plan):
        plan = plan.at[..., 0, -size:].set(observation)
        return plan if goal is None else plan.at[..., -1, -size:].set(goal)

    return known


# --- Losses ---


def plan_loss(
    model: TemporalUNet,
    schedule: Schedule,
    plan: Float[Array, "b h channel"],
    known: Known,
    weight: Float[Array, "h channel"],
    t: Int[Array, " b"],
    eps: Float[Array, "b h channel"],
) -> tuple[Scalar, Scalar]:
    """E[w (x_0 - known(f_theta(known(x_t), t)))^2], the mean over plans, time and channels; and without the weights.

    Reference: Diffuser (arXiv:2205.09991), section 3.2, with x_0 predicted in the place of the noise, as its program
    does. What is known has no error, and counts in the mean.
    """
    xt = known(add_noise(schedule, plan, t[:, None], eps))
    error = jnp.square(known(model(xt, t)) - plan)
    return jnp.mean(weight * error), jnp.mean(error)


# --- Acting ---


@dataclass(frozen=True)
class Planner(Generic[State]):
    """How a method plans for observations "*b obs", and acts on a plan "*b h c"."""

    new: Callable[[State, Float[Array, "*b obs"], Key], Float[Array, "*b h c"]]
    """A plan from noise."""
    renewed: Callable[[State, Float[Array, "*b obs"], Float[Array, "*b h c"], Key], Float[Array, "*b h c"]]
    """A plan from one that began some steps ago and was moved on since."""
    follow: Callable[[State, Float[Array, "*b h c"], Float[Array, "*b obs"], Int[Array, ""]], Float[Array, "*b act"]]
    """The action so many steps after the plan began."""


def acting(
    planner: Planner[State], shape: tuple[int, int], replan_every: int, warm_start: bool
) -> tuple[Callable[[State, Float[Array, "*b obs"], Key], Float[Array, "*b act"]], EpisodeActor[State] | None]:
    """`act`, which plans anew, and how to act in whole episodes, where plans of this shape "h c" are remembered.

    A plan is followed for `replan_every` steps, or for the whole episode where that is 0; the next one is made of it
    with a warm start, else from noise.
    """

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        return planner.follow(state, planner.new(state, observation, key), observation, jnp.asarray(0))

    def begin(observation: Float[Array, "*b obs"]) -> Float[Array, "*b h c"]:
        return jnp.zeros((*observation.shape[:-1], *shape))

    def act_in_episode(state: State, observation: Float[Array, "*b obs"], last, step: Int[Array, ""], key: Key):
        since = step % replan_every if replan_every else step

        def from_noise():
            return planner.new(state, observation, key)

        def from_last():
            return planner.renewed(state, observation, shifted(last, replan_every), key)

        def replan():
            return jax.lax.cond(step == 0, from_noise, from_last) if warm_start and replan_every else from_noise()

        plan = replan() if replan_every == 1 else jax.lax.cond(since == 0, replan, lambda: last)
        return planner.follow(state, plan, observation, since), plan

    remembers = warm_start or replan_every != 1
    return act, EpisodeActor(begin, act_in_episode) if remembers else None


def check_warm_start(warm_start_steps: int, num_steps: int) -> None:
    """Raises `UserError` where a warm start would have more diffusion steps than a plan."""
    if warm_start_steps > num_steps:
        raise UserError(
            f"warm_start_steps is {warm_start_steps}, and a plan has {num_steps} diffusion steps: take fewer, or 0 to "
            "start from noise"
        )


def warm_noise(
    schedule: Schedule, plan: Float[Array, "*#b h c"], noise: Float[Array, "steps *b h c"]
) -> Float[Array, "steps *b h c"]:
    """Noise of the last steps of a chain that begins with this plan, perturbed to their first step."""
    t = jnp.asarray(noise.shape[0] - 1)
    return noise.at[0].set(add_noise(schedule, jnp.broadcast_to(plan, noise.shape[1:]), t, noise[0]))


def best_of(plan: Float[Array, "*b k h c"], value: Float[Array, "*b k"] | None) -> Float[Array, "*b h c"]:
    """The plan of the highest value; the first where nothing values them."""
    if value is None:
        return plan[..., 0, :, :]
    best = jnp.argmax(value, axis=-1)[..., None, None, None]
    return jnp.take_along_axis(plan, best, axis=-3)[..., 0, :, :]


def shifted(plan: Float[Array, "*b h c"], steps: int) -> Float[Array, "*b h c"]:
    """The plan as it looks some steps later: its end is held."""
    step = jnp.minimum(jnp.arange(plan.shape[-2]) + steps, plan.shape[-2] - 1)
    return plan[..., step, :]


def towards(
    waypoint: Float[Array, "*b obs"], observation: Float[Array, "*b obs"], at_rest: Real
) -> Float[Array, "*b act"]:
    """(x' - x) + (v' - v) of observations that are positions x and velocities v; v' = 0 where `at_rest` is 1.

    Reference: how the program of Diffuser (arXiv:2205.09991) drives its point masses along a plan.
    """
    position, velocity = jnp.split(waypoint, 2, axis=-1)
    own_position, own_velocity = jnp.split(observation, 2, axis=-1)
    return (position - own_position) + ((1.0 - at_rest) * velocity - own_velocity)
