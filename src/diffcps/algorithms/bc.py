"""Behaviour cloning: supervised regression of the data's actions on their observations (CORL, arXiv:2210.07105).

    deterministic policy   L(theta) = mean (a_theta(s) - a)^2,                 (s, a) ~ data
    Gaussian policy        L(theta) = -E[log N(a; mu_theta(s), diag(sigma^2))]

The first mean is over action dimensions, too; the log-density is the sum over them. There is no reward and no critic.

Where this differs from CORL's program: docs/algorithms/bc.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.gaussian import Deterministic, Gaussian
from diffcps.optim import Trained, clipped_adam, descend, start
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import Algorithm, Dataset, Key, Metrics, Real, Scalar, Spec, Transition, UpdateIndex

CITATION = """@inproceedings{pomerleau1988alvinn,
  title = {{ALVINN}: An Autonomous Land Vehicle in a Neural Network},
  author = {Pomerleau, Dean A.},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {1988}
}"""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of CORL's program."""

    policy: Literal["deterministic", "gaussian"] = "deterministic"
    """One action per observation (CORL), or a Gaussian whose mean depends on the observation and whose std does not."""
    stochastic: bool = False
    """Act with a sample of the Gaussian policy instead of its mean."""
    learning_rate: Real = 3e-4
    """Adam's rate (CORL)."""
    max_grad_norm: Real = float("inf")
    """Global norm to which the gradient is clipped; inf: no clipping (CORL)."""
    decay_updates: int = 0
    """Updates over which the rate falls to zero along a cosine; 0 keeps it constant (CORL)."""
    batch_size: int = 256
    """Transitions per update (CORL)."""
    width: int = 256
    """Units per hidden layer (CORL)."""
    depth: int = 2
    """Hidden layers, with ReLU after each (CORL)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[Deterministic | Gaussian]


def squared_error_loss(policy: Deterministic, batch: Transition) -> Scalar:
    """mean (a_theta(s) - a)^2 over the batch and the dimensions of the action."""
    return jnp.mean(jnp.square(policy(batch.observation) - batch.action))


def likelihood_loss(policy: Gaussian, batch: Transition) -> Scalar:
    """-mean log N(a; mu_theta(s), diag(sigma^2)) over the batch."""
    return -jnp.mean(policy.log_prob(batch.observation, batch.action))


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """Behaviour cloning for the given sizes. Real-valued fields of `config` may be traced arrays."""
    optimiser = clipped_adam(config.learning_rate, config.max_grad_norm, config.decay_updates)
    hidden = (config.width,) * config.depth

    def init(key: Key) -> State:
        network = Gaussian if config.policy == "gaussian" else Deterministic
        return State(start(optimiser, network(spec, hidden, key)))

    def batch(dataset: Dataset, key: Key) -> Transition:
        return sample_transitions(dataset, key, config.batch_size)

    def bc_loss(policy: Deterministic | Gaussian, batch: Transition) -> Scalar:
        if isinstance(policy, Gaussian):
            return likelihood_loss(policy, batch)
        return squared_error_loss(policy, batch)

    def update(state: State, batch: Transition, key: Key, index: UpdateIndex) -> tuple[State, Metrics]:
        loss, gradient = jax.value_and_grad(bc_loss)(state.actor.model, batch)
        actor, norm = descend(optimiser, state.actor, gradient)
        return State(actor), {"actor/bc_loss": loss, "actor/grad_norm": norm}

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        policy = state.actor.model
        if isinstance(policy, Deterministic):
            return policy(observation)
        action = policy.sample(observation, key) if config.stochastic else policy.mean(observation)
        return jnp.clip(action, -1.0, 1.0)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        loss = bc_loss(state.actor.model, transitions(rows))
        return {"actor/bc_loss": loss, "selection/loss": loss}

    return Algorithm(init, batch, update, act, diagnose)
