"""Decision Diffuser: plans of states drawn for a wanted return, and the actions between them (arXiv:2211.15657).

    model      L_eps = E[w (eps - eps_theta(x_t, m y, t))^2],   x_0 = (s_0, ..., s_{h-1}) ~ data, y its return to go,
               m ~ Bernoulli(1 - p)                                                                            (eq. 7)
    inverse    L_inv = E[(a_k - f_phi(s_k, s_{k+1}))^2]                                                        (eq. 7)
    loss       (L_eps + L_inv) / 2
    planning   eps = eps_theta(x_t, 0, t) + w (eps_theta(x_t, y, t) - eps_theta(x_t, 0, t))                    (eq. 8)
               x_{t-1} ~ N(posterior mean, (temperature sigma_t)^2), with s_0 put back at each step    (algorithm 1)
    acting     a = f_phi(s_0, s_1) of the plan; then a new plan

Where this differs from the authors' program: docs/algorithms/decision_diffuser.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffcps.diffusion.guidance import classifier_free, sample_known
from diffcps.diffusion.process import add_noise, predict_x0
from diffcps.diffusion.schedule import Schedule, make_schedule
from diffcps.networks.mlp import MLP
from diffcps.networks.temporal_unet import TemporalUNet, check_horizon
from diffcps.optim import Trained, as_one_vector, clipped_adam, copied_then_averaged, minimise, start
from diffcps.policies.plans import (
    Planner,
    Ranks,
    WindowLabels,
    Windows,
    acting,
    by_ranks,
    check_warm_start,
    draw_windows,
    knowing,
    label_windows,
    steps_read,
    unranked,
    warm_noise,
)
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
    UpdateIndex,
)

CITATION = """@inproceedings{ajay2023decision,
  title = {Is Conditional Generative Modeling all you need for Decision-Making?},
  author = {Ajay, Anurag and Du, Yilun and Gupta, Abhi and Tenenbaum, Joshua B. and Jaakkola, Tommi S. and Agrawal, Pulkit},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  eprint = {2211.15657},
  archivePrefix = {arXiv}
}"""  # noqa: E501

DIAGNOSED = 256
"""Windows that a diagnosis measures."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program (for Hopper) unless said."""

    horizon: int = 100
    """Steps of a plan; 2 ^ (levels - 1) must divide it."""
    num_steps: int = 200
    """Diffusion steps T, on the cosine schedule (paper: 100)."""
    target_return: Real = 0.9
    """The return to plan for, in units of `returns_scale`."""
    returns_scale: Real = 400.0
    """Returns are divided by it (authors, for Hopper: 400, about the largest of the data)."""
    guidance: Real = 1.2
    """w: 1 is the conditional model, 0 the one without condition (paper: 1.2 to 1.8 by task)."""
    temperature: Real = 0.5
    """Factor on all noise that plans are made of (paper: on its variance)."""
    condition_dropout: Real = 0.25
    """p: how often the model learns without the return."""
    replan_every: Count = 1
    """Steps of the environment between plans; 0: one plan for an episode."""
    warm_start_steps: Count = 0
    """Diffusion steps from which a new plan is made of the last one, moved on by the steps taken; 0: from noise, by all
    T steps (authors)."""
    discount: Real = 0.99
    """Discount gamma of the returns."""
    termination_penalty: Real = 100.0
    """Subtracted from the last reward of an episode that truly ends, in the returns."""
    padded_below: Count = 1000
    """Windows go on, with zeros, behind the ends of episodes of fewer steps than this (authors: max_path_length); 0:
    never."""
    learning_rate: Real = 2e-4
    """Adam's rate, for model and inverse together."""
    batch_size: int = 64
    """Windows per update (authors: 32, gradients of two batches averaged)."""
    ema_rate: Real = 0.005
    """Rate at which the moving average follows, which plans."""
    ema_every: int = 10
    """Updates between steps of the moving average."""
    ema_start: Count = 2000
    """Updates during which the moving average is a copy."""
    width: int = 128
    """Channels of the U-Net's first level, sinusoids of the diffusion step, units of the embedded return."""
    multipliers: tuple[int, ...] = (1, 4, 8)
    """Channels of each level, in proportion to `width`."""
    inverse_width: int = 256
    """Units per hidden layer of the inverse dynamics, of which there are two (paper: 512)."""


class Model(eqx.Module):
    """What one optimiser trains."""

    unet: TemporalUNet
    """eps_theta."""
    returns: MLP
    """Embeds the return."""
    inverse: MLP
    """f_phi."""

    def __init__(self, spec: Spec, config: Config, key: Key):
        key_unet, key_returns, key_inverse = jax.random.split(key, 3)
        size, width, units = spec.observation_size, config.width, config.inverse_width
        self.unet = TemporalUNet(size, width, config.multipliers, key_unet, condition_size=width)
        self.returns = MLP((1, width, 4 * width, width), key_returns)
        self.inverse = MLP((2 * size, units, units, spec.action_size), key_inverse, jax.nn.relu)

    def noise(
        self, xt: Float[Array, "*b h obs"], t: Int[Array, "*#b"], value: Float[Array, "*#b"], kept: Float[Array, "*#b"]
    ) -> Float[Array, "*b h obs"]:
        """eps_theta(x_t, y, t), without the return where `kept` is 0: its embedding is then zero."""
        return self.unet(xt, t, kept[..., None] * self.returns(value[..., None]))

    def action(self, now: Float[Array, "*b obs"], then: Float[Array, "*b obs"]) -> Float[Array, "*b act"]:
        """f_phi(s, s'), scaled."""
        return self.inverse(jnp.concatenate([now, then], axis=-1))


class State(NamedTuple):
    """What is carried from update to update."""

    planner: Trained[Model]
    target_planner: Model
    """Moving average of it, which plans."""
    action_ranks: Ranks
    """The distribution of the data that the training began with, dimension by dimension."""
    observation_ranks: Ranks


class Draws(NamedTuple):
    """All randomness of one update."""

    t: Int[Array, " b"]
    """Diffusion steps, uniform on 0..T-1."""
    eps: Float[Array, "b h obs"]
    kept: Float[Array, " b"]
    """1 where the return is seen, 0 where not."""


def draw(config: Config, read: Windows, key: Key) -> Draws:
    """The random numbers of one update on these windows."""
    key_t, key_eps, key_kept = jax.random.split(key, 3)
    size = read.value.shape
    t = jax.random.randint(key_t, size, 0, config.num_steps)
    kept = jax.random.bernoulli(key_kept, 1.0 - config.condition_dropout, size)
    return Draws(t, jax.random.normal(key_eps, read.observation.shape), jnp.asarray(kept, jnp.float32))


def label(dataset: Dataset, config: Config) -> WindowLabels:
    """Where windows start, and the returns to go in units of `returns_scale`."""
    found = label_windows(dataset, config.horizon, config.padded_below, config.discount, config.termination_penalty)
    return found._replace(value=found.value / config.returns_scale)


# --- Losses ---


def noise_loss(
    model: Model, schedule: Schedule, states: Float[Array, "b h obs"], value: Float[Array, " b"], draws: Draws
) -> Scalar:
    """E[w (eps - eps_theta(known(x_t), m y, t))^2] (eq. 7), w = 0 at the first step, which is known, and 1 elsewhere.

    The mean counts the first step, too.
    """
    xt = knowing(states[:, 0])(add_noise(schedule, states, draws.t[:, None], draws.eps))
    error = jnp.square(draws.eps - model.noise(xt, draws.t, value, draws.kept))
    return jnp.mean(error.at[:, 0].set(0.0))


def inverse_loss(model: Model, states: Float[Array, "b h obs"], action: Float[Array, "b h act"]) -> Scalar:
    """E[(a_k - f_phi(s_k, s_{k+1}))^2] over all neighbours in a window (eq. 7)."""
    return jnp.mean(jnp.square(model.action(states[:, :-1], states[:, 1:]) - action[:, :-1]))


def loss(
    model: Model,
    schedule: Schedule,
    states: Float[Array, "b h obs"],
    action: Float[Array, "b h act"],
    value: Float[Array, " b"],
    draws: Draws,
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    """(L_eps + L_inv) / 2; also both of them."""
    of_noise, of_inverse = noise_loss(model, schedule, states, value, draws), inverse_loss(model, states, action)
    return (of_noise + of_inverse) / 2.0, (of_noise, of_inverse)


# --- Planning ---


def plan(
    model: Model,
    schedule: Schedule,
    observation: Float[Array, "*b obs"],
    value: Real,
    guidance: Real,
    noise: Float[Array, "steps *b h obs"],
) -> Float[Array, "*b h obs"]:
    """Scaled states for a wanted return, from a scaled observation (algorithm 1, eq. 8)."""
    seen = jnp.broadcast_to(jnp.asarray(value, jnp.float32), observation.shape[:-1])
    kept = jnp.ones_like(seen)

    def estimate(xt: Float[Array, "*b h obs"], t: Int[Array, ""]) -> Float[Array, "*b h obs"]:
        with_return, without = model.noise(xt, t, seen, kept), model.noise(xt, t, seen, 0.0 * kept)
        return predict_x0(schedule, xt, t[None], classifier_free(with_return, without, guidance))

    return sample_known(schedule, estimate, knowing(observation), noise, clip=1.0)[0]


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """Decision Diffuser for the given sizes. Real-valued fields of `config` may be traced arrays."""
    check_horizon(config.horizon, config.multipliers)
    check_warm_start(config.warm_start_steps, config.num_steps)
    schedule = make_schedule("cosine", config.num_steps)
    optimiser = as_one_vector(clipped_adam(config.learning_rate, float("inf")))
    shape = config.horizon, spec.observation_size

    def init(key: Key) -> State:
        model = Model(spec, config, key)
        ranks = unranked(spec.action_size), unranked(spec.observation_size)
        return State(start(optimiser, model), model, *ranks)

    def begin(state: State, dataset: Dataset, key: Key) -> tuple[State, WindowLabels]:
        ranks = {"action_ranks": by_ranks(dataset.action), "observation_ranks": by_ranks(dataset.observation)}
        return state._replace(**ranks), label(dataset, config)

    def batch(dataset: Dataset, key: Key) -> Windows:
        return draw_windows(dataset, dataset.labels, key, config.batch_size, config.horizon)

    def scaled(state: State, read: Windows) -> tuple[Float[Array, "b h obs"], Float[Array, "b h act"]]:
        return state.observation_ranks.into(read.observation), state.action_ranks.into(read.action)

    def update(state: State, batch: Windows, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        states, action = scaled(state, batch)
        arguments = schedule, states, action, batch.value, draws
        planner, total, (of_noise, of_inverse), norm = minimise(optimiser, state.planner, loss, *arguments)
        ema = config.ema_every, config.ema_start, config.ema_rate
        target = copied_then_averaged(state.target_planner, planner.model, index.count, *ema)
        metrics = {"plan/loss": of_noise, "inverse/loss": of_inverse, "planner/loss": total, "planner/grad_norm": norm}
        return state._replace(planner=planner, target_planner=target), metrics

    # --- acting ---

    def plan_from(
        state: State, observation: Float[Array, "*b obs"], noise: Float[Array, "steps *b h obs"]
    ) -> Float[Array, "*b h obs"]:
        seen = state.observation_ranks.into(observation)
        return plan(state.target_planner, schedule, seen, config.target_return, config.guidance, noise)

    def noise_for(observation: Float[Array, "*b obs"], steps: int, key: Key) -> Float[Array, "steps *b h obs"]:
        return config.temperature * jax.random.normal(key, (steps, *observation.shape[:-1], *shape))

    def new_plan(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b h obs"]:
        return plan_from(state, observation, noise_for(observation, config.num_steps, key))

    def renewed_plan(state: State, observation: Float[Array, "*b obs"], last, key: Key) -> Float[Array, "*b h obs"]:
        noise = noise_for(observation, config.warm_start_steps, key)
        return plan_from(state, observation, warm_noise(schedule, last, noise))

    def follow(
        state: State, planned: Float[Array, "*b h obs"], observation: Float[Array, "*b obs"], since: Int[Array, ""]
    ) -> Float[Array, "*b act"]:
        then = planned[..., jnp.minimum(since + 1, config.horizon - 1), :]
        action = state.target_planner.action(state.observation_ranks.into(observation), then)
        return jnp.clip(state.action_ranks.back(action), -1.0, 1.0)

    act, in_episode = acting(
        Planner(new_plan, renewed_plan, follow), shape, config.replan_every, config.warm_start_steps > 0
    )

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        key_start, key_draw = jax.random.split(key)
        read = draw_windows(rows, label(rows, config), key_start, DIAGNOSED, config.horizon)
        states, action = scaled(state, read)
        draws = draw(config, read, key_draw)
        total, (of_noise, of_inverse) = loss(state.target_planner, schedule, states, action, read.value, draws)
        return {"plan/loss": of_noise, "inverse/loss": of_inverse, "planner/loss": total, "selection/loss": total}

    return Algorithm(
        init,
        (Stage(1, batch, update, begin, draw=partial(draw, config)),),
        act,
        diagnose,
        needs=EPISODES,
        episode_steps=steps_read(config.horizon, config.padded_below),
        in_episode=in_episode,
    )


METRICS = {
    "plan/loss": Metric("Denoising loss of the planned states", "plan loss", "log"),
    "inverse/loss": Metric("Squared error of the inverse dynamics", "inverse loss", "log"),
    "planner/loss": Metric("Half the sum of both", "loss", "log"),
    "planner/grad_norm": Metric("Norm of the gradient", scale="log"),
    "selection/loss": Metric("Half the sum of both", scale="log"),
}
