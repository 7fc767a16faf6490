"""IQL: implicit Q-learning, which never asks for the value of an action that is not logged (arXiv:2110.06169).

    value    L(psi)   = E[|tau - 1[u < 0]| u^2],   u = min_j Q_phi'_j(s, a) - V_psi(s)                     (eq. 5)
    policy   L(theta) = -E[min(exp(beta u), w_max) log pi_theta(a | s)],   u with the new V_psi            (eq. 7)
    critic   L(phi)   = sum_j E[(r + gamma V_psi(s') - Q_phi_j(s, a))^2],   with the new V_psi             (eq. 6)

V is the expectile tau of Q over the logged actions: near tau = 1 the value of the best of them. The policy is a
Gaussian, drawn towards the logged actions that are better than V.

Where this differs from the authors' program: docs/algorithms/iql.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic, VNetwork
from diffcps.networks.gaussian import Gaussian
from diffcps.networks.initial import initialised, orthogonal
from diffcps.optim import Trained, clipped_adam, minimise, moving_average, start
from diffcps.policies import gaussian
from diffcps.policies.gaussian import negative_log_likelihood, weighted_cloning_loss
from diffcps.rl.bellman import CRITIC_METRICS, critic_loss, td_target
from diffcps.rl.regression import exponential_weights, value_loss
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

CITATION = """@inproceedings{kostrikov2022iql,
  title = {Offline Reinforcement Learning with Implicit {Q}-Learning},
  author = {Kostrikov, Ilya and Nair, Ashvin and Levine, Sergey},
  booktitle = {International Conference on Learning Representations},
  year = {2022},
  eprint = {2110.06169},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program on MuJoCo's locomotion tasks."""

    expectile: Real = 0.7
    """Expectile tau of V among the logged actions' Q (eq. 5; authors: 0.7, AntMaze 0.9)."""
    inverse_temperature: Real = 3.0
    """beta of the weights exp(beta u) (eq. 7; authors: 3, AntMaze 10)."""
    max_weight: Real = 100.0
    """Largest weight w_max (authors' program)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target critics follow the critics, every update (authors' program)."""
    value_learning_rate: Real = 3e-4
    """Adam's rate for V (authors' program)."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the policy at the start (authors' program)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (authors' program)."""
    actor_decay_updates: Count = 1_000_000
    """Updates over which the policy's rate falls to zero along a cosine; 0 keeps it constant (authors: 1,000,000, the
    length of their trainings; give your own `--updates` to do as they do)."""
    batch_size: int = 256
    """Transitions per update (authors' program)."""
    width: int = 256
    """Units per hidden layer, all networks (authors' program)."""
    depth: int = 2
    """Hidden layers with ReLU, all networks (authors' program)."""
    stochastic: bool = False
    """Act by a sample of the policy instead of its mean (authors: the mean)."""


class State(NamedTuple):
    """What is carried from update to update."""

    value: Trained[VNetwork]
    actor: Trained[Gaussian]
    critic: Trained[Critic]
    target_critic: Critic


def advantage(value: VNetwork, critic: Critic, batch: Transition) -> Float[Array, " b"]:
    """u = min_j Q_j(s, a) - V(s)."""
    return jnp.min(critic(batch.observation, batch.action), axis=0) - value(batch.observation)


def policy_loss(
    policy: Gaussian, value: VNetwork, critic: Critic, batch: Transition, config: Config
) -> tuple[Scalar, Scalar]:
    """-E[min(exp(beta u), w_max) log pi_theta(a | s)] (eq. 7); also the mean weight."""
    weight = exponential_weights(config.inverse_temperature * advantage(value, critic, batch), config.max_weight)
    return weighted_cloning_loss(policy, batch, weight), jnp.mean(weight)


def critic_target(value: VNetwork, batch: Transition, discount: Real) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) V(s') (eq. 6)."""
    return td_target(batch.reward, batch.terminal, value(batch.next_observation), discount)


def new_networks(spec: Spec, hidden: tuple[int, ...], key: Key) -> tuple[VNetwork, Gaussian, Critic]:
    """V, policy and critics with the authors' initial weights: orthogonal, sqrt(2) times, the last layers too."""
    key_value, key_actor, key_critic, *keys = jax.random.split(key, 6)
    value, actor = VNetwork(spec, hidden, key_value), Gaussian(spec, hidden, key_actor, tanh_mean=True)
    critic = Critic(spec, hidden, key_critic, jax.nn.relu)
    value, actor = initialised(value, orthogonal, keys[0]), initialised(actor, orthogonal, keys[1])
    return value, actor, initialised(critic, orthogonal, keys[2])


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """IQL for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    unclipped = float("inf")
    value_optimiser = clipped_adam(config.value_learning_rate, unclipped)
    actor_optimiser = clipped_adam(config.actor_learning_rate, unclipped, config.actor_decay_updates)
    critic_optimiser = clipped_adam(config.critic_learning_rate, unclipped)

    def init(key: Key) -> State:
        value, actor, critic = new_networks(spec, (config.width,) * config.depth, key)
        return State(
            value=start(value_optimiser, value),
            actor=start(actor_optimiser, actor),
            critic=start(critic_optimiser, critic),
            target_critic=critic,
        )

    def update(state: State, batch: Transition, draws: tuple[()], index: UpdateIndex) -> tuple[State, Metrics]:
        # --- V ---
        value, loss, v, norm = minimise(
            value_optimiser, state.value, value_loss, state.target_critic, batch, config.expectile
        )
        metrics = {"value/loss": loss, "value/v": jnp.mean(v), "value/grad_norm": norm}

        # --- policy ---
        actor, loss, weight, norm = minimise(
            actor_optimiser, state.actor, policy_loss, value.model, state.target_critic, batch, config
        )
        metrics |= {"actor/loss": loss, "actor/weight": weight, "actor/grad_norm": norm}

        # --- critics ---
        target = critic_target(value.model, batch, config.discount)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, target)
        metrics |= {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}

        # --- target critics ---
        target_critic = moving_average(state.target_critic, critic.model, config.target_rate)
        return State(value, actor, critic, target_critic), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        return gaussian.act(state.actor.model, observation, config.stochastic, key)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        loss, q = critic_loss(state.critic.model, batch, critic_target(state.value.model, batch, config.discount))
        of_value, v = value_loss(state.value.model, state.target_critic, batch, config.expectile)
        nll = negative_log_likelihood(state.actor.model, batch)
        metrics = {"critic/td_error": loss / q.shape[0], "critic/q": jnp.mean(q)}
        return metrics | {"value/loss": of_value, "value/v": jnp.mean(v), "actor/nll": nll, "selection/loss": nll}

    return Algorithm(init, (Stage(1, batch, update),), act, diagnose)


METRICS = {
    "actor/weight": Metric("Mean weight of the logged actions", "weight"),
    "value/v": Metric("V of the data's observations", "V"),
    **CRITIC_METRICS,
    "value/loss": Metric("Expectile loss of V", "value loss", "log"),
    "actor/loss": Metric("Weighted negative log-likelihood"),
    "actor/nll": Metric("Negative log-likelihood of the data's actions"),
    "value/grad_norm": Metric("Norm of V's gradient", scale="log"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "selection/loss": Metric("Negative log-likelihood of the data's actions"),
}
