"""AWR: advantage-weighted regression with a Gaussian policy (arXiv:1910.00177), on logged data.

    return     G_t = r_t + gamma [(1 - lambda) V(s_{t+1}) + lambda G_{t+1}]                              TD(lambda)
    value      L(phi)   = 1/2 E[((G - V_phi(s)) / v)^2],   v = 1 / (1 - gamma)
    advantage  A = G - V_phi(s),   standardised over the whole dataset
    policy     L(theta) = -E[min(exp(A / beta), w_max) log pi_theta(a | s)] + a penalty on means outside the box

The training alternates, as the algorithm box does, between stages of value regression and of policy regression.
Returns, and then advantages, are computed for the whole dataset at the start of each stage.

Where this differs from the authors' program: docs/algorithms/awr.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.gaussian import Gaussian
from diffcps.networks.mlp import MLP
from diffcps.optim import Trained, minimise, momentum_sgd, start
from diffcps.policies import gaussian
from diffcps.policies.gaussian import negative_log_likelihood, weighted_cloning_loss
from diffcps.rl.regression import exponential_weights
from diffcps.rl.replay import Labelled, sample_labelled, transitions
from diffcps.rl.returns import lambda_returns
from diffcps.types import (
    EPISODES,
    Algorithm,
    Dataset,
    Key,
    Metric,
    Metrics,
    Real,
    Scalar,
    Spec,
    Stage,
    UpdateIndex,
    UserError,
)

CITATION = """@misc{peng2019awr,
  title = {Advantage-Weighted Regression: Simple and Scalable Off-Policy Reinforcement Learning},
  author = {Peng, Xue Bin and Kumar, Aviral and Zhang, Grace and Levine, Sergey},
  year = {2019},
  eprint = {1910.00177},
  archivePrefix = {arXiv}
}"""

CHUNK = 4096
"""Rows whose values are computed at once."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program as D4RL's evaluation ran it, unless said."""

    temperature: Real = 1.0
    """Temperature beta of the weights exp(A / beta)."""
    max_weight: Real = 20.0
    """Largest weight w_max."""
    trace: Real = 0.95
    """lambda of TD(lambda)."""
    discount: Real = 0.99
    """Discount gamma."""
    std: Real = 0.2
    """Standard deviation of the policy in each action dimension, not trained (authors: 0.4; 0.2 on Ant)."""
    bound_weight: Real = 10.0
    """Weight of the penalty on means outside [-1, 1]."""
    iterations: int = 40
    """How often values and policy take turns in a run (authors: once per 2,048 samples of experience)."""
    critic_share: int = 1
    """Updates of the value in proportion to `actor_share` (the authors' 200 to 1,000; D4RL: 500 to 1,000)."""
    actor_share: int = 5
    """Updates of the policy in proportion to `critic_share`."""
    actor_learning_rate: Real = 5e-5
    """Rate of SGD for the policy (authors: 2.5e-5 to 1e-4 by task)."""
    critic_learning_rate: Real = 1e-2
    """Rate of SGD for the value."""
    momentum: Real = 0.9
    """Momentum of both."""
    batch_size: int = 256
    """Rows per update."""
    width: int = 128
    """Units of the first hidden layer, policy and value."""
    second_width: int = 64
    """Units of the second hidden layer."""
    stochastic: bool = False
    """Act by a sample of the policy instead of its mean (authors: the mean)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[Gaussian]
    critic: Trained[MLP]
    """V(s) / v: values as the network predicts them, about one in size."""


def value(critic: MLP, observation: Float[Array, "*b obs"], scale: Real) -> Float[Array, "*b"]:
    """V(s), in the units of the rewards; the network predicts V(s) / v."""
    return scale * critic(observation)[..., 0]


def values(critic: MLP, observation: Float[Array, "n obs"], scale: Real) -> Float[Array, " n"]:
    """V(s) of a whole dataset."""
    return jax.lax.map(lambda observation: value(critic, observation, scale), observation, batch_size=CHUNK)


def returns(critic: MLP, dataset: Dataset, scale: Real, config: Config) -> Float[Array, " n"]:
    """G of every row, by TD(lambda)."""
    next_value = values(critic, dataset.next_observation, scale)
    return lambda_returns(dataset, next_value, config.discount, config.trace)


def advantages(critic: MLP, dataset: Dataset, scale: Real, config: Config) -> Float[Array, " n"]:
    """A = G - V(s) of every row, with mean 0 and standard deviation 1 over the dataset."""
    advantage = returns(critic, dataset, scale, config) - values(critic, dataset.observation, scale)
    return (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-5)


def value_loss(critic: MLP, batch: Labelled, scale: Real) -> Scalar:
    """1/2 E[((G - V(s)) / v)^2]."""
    return 0.5 * jnp.mean(jnp.square((batch.target - value(critic, batch.observation, scale)) / scale))


def bound_loss(mean: Float[Array, "b act"]) -> Scalar:
    """1/2 E sum_i (distance of the mean from [-1, 1] in dimension i)^2."""
    return 0.5 * jnp.mean(jnp.sum(jnp.square(mean - jnp.clip(mean, -1.0, 1.0)), axis=-1))


def policy_loss(policy: Gaussian, batch: Labelled, config: Config) -> tuple[Scalar, Scalar]:
    """-E[min(exp(A / beta), w_max) log pi_theta(a | s)] + the penalty on means outside the box; and the mean weight."""
    weight = exponential_weights(batch.target / config.temperature, config.max_weight)
    bound = bound_loss(policy.mean(batch.observation))
    return weighted_cloning_loss(policy, batch, weight) + config.bound_weight * bound, jnp.mean(weight)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """AWR for the given sizes. Real-valued fields of `config` may be traced arrays."""
    if isinstance(config.discount, float | int) and not config.discount < 1:
        raise UserError(
            f"discount is {config.discount:g}: AWR needs one below 1, as values are in units of 1 / (1 - gamma)"
        )
    scale = 1.0 / (1.0 - config.discount)
    batch = partial(sample_labelled, batch_size=config.batch_size)
    actor_optimiser = momentum_sgd(config.actor_learning_rate, config.momentum)
    critic_optimiser = momentum_sgd(config.critic_learning_rate, config.momentum)

    def init(key: Key) -> State:
        key_actor, key_critic = jax.random.split(key)
        hidden = (config.width, config.second_width)
        return State(
            actor=start(actor_optimiser, Gaussian(spec, hidden, key_actor, std=config.std)),
            critic=start(critic_optimiser, MLP((spec.observation_size, *hidden, 1), key_critic, jax.nn.relu)),
        )

    # --- the value ---

    def begin_critic(state: State, dataset: Dataset, key: Key) -> tuple[State, Float[Array, " n"]]:
        return state, returns(state.critic.model, dataset, scale, config)

    def update_critic(state: State, batch: Labelled, draws: tuple[()], index: UpdateIndex) -> tuple[State, Metrics]:
        critic, loss, _, norm = minimise(critic_optimiser, state.critic, value_loss, batch, scale)
        metrics = {"critic/loss": loss, "critic/return": jnp.mean(batch.target), "critic/grad_norm": norm}
        return state._replace(critic=critic), metrics

    # --- the policy ---

    def begin_actor(state: State, dataset: Dataset, key: Key) -> tuple[State, Float[Array, " n"]]:
        return state, advantages(state.critic.model, dataset, scale, config)

    def update_actor(state: State, batch: Labelled, draws: tuple[()], index: UpdateIndex) -> tuple[State, Metrics]:
        actor, loss, weight, norm = minimise(actor_optimiser, state.actor, policy_loss, batch, config)
        return state._replace(actor=actor), {"actor/loss": loss, "actor/weight": weight, "actor/grad_norm": norm}

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        return gaussian.act(state.actor.model, observation, config.stochastic, key)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        nll = negative_log_likelihood(state.actor.model, transitions(rows))
        mean_value = jnp.mean(value(state.critic.model, rows.observation, scale))
        return {"actor/nll": nll, "critic/value": mean_value, "selection/loss": nll}

    critic_stage = Stage(config.critic_share, batch, update_critic, begin_critic, keep=True)
    actor_stage = Stage(config.actor_share, batch, update_actor, begin_actor, keep=True)
    return Algorithm(
        init,
        (critic_stage, actor_stage) * config.iterations,
        act,
        diagnose,
        needs=EPISODES,
    )


METRICS = {
    "actor/weight": Metric("Mean weight of the logged actions", "weight"),
    "actor/loss": Metric("Weighted negative log-likelihood", "policy loss"),
    "critic/loss": Metric("Value loss, in units of $1 / (1 - γ)$", "value loss", "log"),
    "critic/return": Metric("Mean return of the batch", "return"),
    "critic/value": Metric("Mean value of the data's observations"),
    "critic/grad_norm": Metric("Norm of the value's gradient", scale="log"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "actor/nll": Metric("Negative log-likelihood of the data's actions"),
    "selection/loss": Metric("Negative log-likelihood of the data's actions"),
}
