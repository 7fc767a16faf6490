"""Behaviour cloning: supervised regression of the data's actions on their observations (CORL, arXiv:2210.07105).

    deterministic policy   L(theta) = mean (a_theta(s) - a)^2,                 (s, a) ~ data
    Gaussian policy        L(theta) = -E[log N(a; mu_theta(s), diag(sigma^2))]

The first mean is over action dimensions, too; the log-density is the sum over them. There is no reward and no critic.

Where this differs from CORL's program: docs/algorithms/bc.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from jaxtyping import Array, Float

from diffcps.networks.gaussian import Deterministic, Gaussian
from diffcps.optim import Trained, clipped_adam, minimise, start
from diffcps.policies import gaussian
from diffcps.policies.gaussian import negative_log_likelihood, squared_error
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import (
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
)

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
    decay_updates: Count = 0
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


def bc_loss(policy: Deterministic | Gaussian, batch: Transition) -> Scalar:
    """mean (a_theta(s) - a)^2, or -E[log N(a; mu_theta(s), diag(sigma^2))]."""
    if isinstance(policy, Gaussian):
        return negative_log_likelihood(policy, batch)
    return squared_error(policy, batch)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """Behaviour cloning for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    optimiser = clipped_adam(config.learning_rate, config.max_grad_norm, config.decay_updates)
    network = Gaussian if config.policy == "gaussian" else Deterministic

    def init(key: Key) -> State:
        return State(start(optimiser, network(spec, (config.width,) * config.depth, key)))

    def update(state: State, batch: Transition, draws: tuple[()], index: UpdateIndex) -> tuple[State, Metrics]:
        actor, loss, _, norm = minimise(optimiser, state.actor, bc_loss, batch)
        return State(actor), {"actor/bc_loss": loss, "actor/grad_norm": norm}

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        policy = state.actor.model
        if isinstance(policy, Deterministic):
            return policy(observation)
        return gaussian.act(policy, observation, config.stochastic, key)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        loss = bc_loss(state.actor.model, transitions(rows))
        return {"actor/bc_loss": loss, "selection/loss": loss}

    return Algorithm(init, (Stage(1, batch, update),), act, diagnose, needs=frozenset())


METRICS = {
    "actor/bc_loss": Metric("Cloning loss (squared error, or negative log-likelihood)", "loss"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", "gradient", "log"),
    "selection/loss": Metric("Cloning loss (squared error, or negative log-likelihood)"),
}
