"""AWAC: an actor and a critic, the actor by advantage-weighted regression (arXiv:2006.09359), on logged data alone.

    critic   L(phi)   = sum_j E[(r + gamma min_k Q_phi'_k(s', a') - Q_phi_j(s, a))^2],   a' ~ pi_theta(. | s')
    policy   L(theta) = -E[min(exp(A / lambda), w_max) log pi_theta(a | s)]
             A        = min_j Q_phi_j(s, a) - min_j Q_phi_j(s, a_theta),   a_theta ~ pi_theta(. | s)

One action of the policy stands for V(s). Sampled actions are clipped to the box.

The program that this follows is CORL's (arXiv:2210.07105). Where it differs: docs/algorithms/awac.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic
from diffcps.networks.gaussian import Gaussian
from diffcps.optim import Trained, clipped_adam, minimise, moving_average, start
from diffcps.policies import gaussian
from diffcps.policies.gaussian import negative_log_likelihood, weighted_cloning_loss
from diffcps.rl.bellman import CRITIC_METRICS, clipped_double_q_target, critic_loss
from diffcps.rl.regression import exponential_weights
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import Algorithm, Dataset, Key, Metric, Metrics, Real, Scalar, Spec, Stage, Transition, UpdateIndex

CITATION = """@misc{nair2020awac,
  title = {{AWAC}: Accelerating Online Reinforcement Learning with Offline Datasets},
  author = {Nair, Ashvin and Gupta, Abhishek and Dalal, Murtaza and Levine, Sergey},
  year = {2020},
  eprint = {2006.09359},
  archivePrefix = {arXiv}
}"""

LOG_STD_RANGE = (-20.0, 2.0)
"""The policy's log-std is clipped to it (CORL)."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of CORL's program on MuJoCo's locomotion tasks."""

    temperature: Real = 0.3333
    """Temperature lambda of the weights exp(A / lambda) (CORL: 0.3333, AntMaze 0.1; authors' program: 2)."""
    max_weight: Real = 100.0
    """Largest weight w_max (CORL; the authors' program takes a softmax over the batch instead)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target critics follow the critics, every update (both programs)."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the policy (both programs)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (both programs)."""
    batch_size: int = 256
    """Transitions per update (CORL; authors: 1024)."""
    width: int = 256
    """Units per hidden layer, policy and critics (both programs)."""
    depth: int = 3
    """Hidden layers with ReLU, policy and critics (CORL; authors: policy 4, critics 2)."""
    stochastic: bool = False
    """Act by a sample of the policy instead of its mean (CORL: the mean)."""


class State(NamedTuple):
    """What is carried from update to update."""

    critic: Trained[Critic]
    target_critic: Critic
    actor: Trained[Gaussian]


class Draws(NamedTuple):
    """All randomness of one update."""

    next_eps: Float[Array, "b act"]
    """Noise of a' at s'."""
    eps: Float[Array, "b act"]
    """Noise of a_theta at s."""


def draw(batch: Transition, key: Key) -> Draws:
    """The random numbers of one update."""
    key_next, key_now = jax.random.split(key)
    return Draws(jax.random.normal(key_next, batch.action.shape), jax.random.normal(key_now, batch.action.shape))


def sampled_action(
    policy: Gaussian, observation: Float[Array, "b obs"], eps: Float[Array, "b act"]
) -> Float[Array, "b act"]:
    """a ~ pi_theta(. | s), clipped to the box."""
    return jnp.clip(policy.sample_with(observation, eps), -1.0, 1.0)


def critic_target(
    policy: Gaussian, critic: Critic, batch: Transition, draws: Draws, discount: Real
) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) min_k Q_phi'_k(s', a'), a' of the policy itself."""
    q_next = critic(batch.next_observation, sampled_action(policy, batch.next_observation, draws.next_eps))
    return clipped_double_q_target(batch.reward, batch.terminal, q_next, discount)


def advantage(policy: Gaussian, critic: Critic, batch: Transition, draws: Draws) -> Float[Array, " b"]:
    """A = min_j Q_j(s, a) - min_j Q_j(s, a_theta)."""
    proposed = sampled_action(policy, batch.observation, draws.eps)
    q, value = (jnp.min(critic(batch.observation, action), axis=0) for action in (batch.action, proposed))
    return q - value


def policy_loss(
    policy: Gaussian, critic: Critic, batch: Transition, draws: Draws, config: Config
) -> tuple[Scalar, Scalar]:
    """-E[min(exp(A / lambda), w_max) log pi_theta(a | s)]; also the mean weight."""
    weight = exponential_weights(advantage(policy, critic, batch, draws) / config.temperature, config.max_weight)
    return weighted_cloning_loss(policy, batch, weight), jnp.mean(weight)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """AWAC for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    unclipped = float("inf")
    actor_optimiser = clipped_adam(config.actor_learning_rate, unclipped)
    critic_optimiser = clipped_adam(config.critic_learning_rate, unclipped)

    def init(key: Key) -> State:
        key_actor, key_critic = jax.random.split(key)
        hidden = (config.width,) * config.depth
        critic = Critic(spec, hidden, key_critic, jax.nn.relu)
        return State(
            critic=start(critic_optimiser, critic),
            target_critic=critic,
            actor=start(actor_optimiser, Gaussian(spec, hidden, key_actor, log_std_range=LOG_STD_RANGE)),
        )

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        # --- critics ---
        target = critic_target(state.actor.model, state.target_critic, batch, draws, config.discount)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, target)
        metrics = {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}

        # --- policy ---
        actor, loss, weight, norm = minimise(
            actor_optimiser, state.actor, policy_loss, critic.model, batch, draws, config
        )
        metrics |= {"actor/loss": loss, "actor/weight": weight, "actor/grad_norm": norm}

        # --- target critics ---
        return State(critic, moving_average(state.target_critic, critic.model, config.target_rate), actor), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        return gaussian.act(state.actor.model, observation, config.stochastic, key)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        target = critic_target(state.actor.model, state.target_critic, batch, draw(batch, key), config.discount)
        loss, q = critic_loss(state.critic.model, batch, target)
        nll = negative_log_likelihood(state.actor.model, batch)
        metrics = {"critic/td_error": loss / q.shape[0], "critic/q": jnp.mean(q)}
        return metrics | {"actor/nll": nll, "selection/loss": nll}

    return Algorithm(init, (Stage(1, batch, update, draw=draw),), act, diagnose)


METRICS = {
    "actor/weight": Metric("Mean weight of the logged actions", "weight"),
    **CRITIC_METRICS,
    "actor/loss": Metric("Weighted negative log-likelihood", "policy loss"),
    "actor/nll": Metric("Negative log-likelihood of the data's actions"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "selection/loss": Metric("Negative log-likelihood of the data's actions"),
}
