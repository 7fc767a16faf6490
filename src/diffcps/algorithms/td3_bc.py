"""TD3+BC: TD3 with a behaviour-cloning term in the policy's loss (arXiv:2106.06860).

    critic   L(phi)   = sum_j E[(r + gamma min_k Q_phi'_k(s', a') - Q_phi_j(s, a))^2]
                        a' = clip(pi_theta'(s') + clip(sigma eps, -c, c), -1, 1),   eps ~ N(0, I)
    policy   L(theta) = -lambda E[Q_phi_1(s, pi_theta(s))] + mean (pi_theta(s) - a)^2,   lambda = alpha / E|Q_phi_1|

The policy is deterministic. It and all target networks move in every second update only.

Where this differs from the authors' program: docs/algorithms/td3_bc.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic
from diffcps.networks.gaussian import Deterministic
from diffcps.optim import Trained, clipped_adam, minimise, moving_average, start
from diffcps.policies.gaussian import squared_error
from diffcps.rl.bellman import CRITIC_METRICS, clipped_double_q_target, critic_loss
from diffcps.rl.improvement import normalised_q_loss
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

CITATION = """@inproceedings{fujimoto2021td3bc,
  title = {A Minimalist Approach to Offline Reinforcement Learning},
  author = {Fujimoto, Scott and Gu, Shixiang Shane},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021},
  eprint = {2106.06860},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program."""

    q_weight: Real = 2.5
    """Weight alpha of the Q term, relative to the behaviour-cloning term (authors' program)."""
    policy_noise: Real = 0.2
    """Standard deviation sigma of the noise on the target policy's action (authors' program)."""
    noise_clip: Real = 0.5
    """Bound c on the size of that noise (authors' program)."""
    policy_interval: int = 2
    """Updates between two moves of the policy and of all target networks (authors' program)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target networks follow, every `policy_interval` updates (authors' program)."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the policy (authors' program)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (authors' program)."""
    max_grad_norm: Real = float("inf")
    """Global norm to which both gradients are clipped; inf: no clipping (authors' program)."""
    decay_updates: Count = 0
    """Updates over which both rates fall to zero along a cosine; 0 keeps them constant (authors' program)."""
    batch_size: int = 256
    """Transitions per update (authors' program)."""
    width: int = 256
    """Units per hidden layer, policy and critics (authors' program)."""
    depth: int = 2
    """Hidden layers with ReLU, policy and critics (authors' program)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[Deterministic]
    target_actor: Deterministic
    critic: Trained[Critic]
    target_critic: Critic


class Draws(NamedTuple):
    """All randomness of one update."""

    eps: Float[Array, "b act"]
    """Noise of a', before its clip."""


def draw(batch: Transition, key: Key) -> Draws:
    """The random numbers of one update."""
    return Draws(jax.random.normal(key, batch.action.shape))


def smoothed_action(
    action: Float[Array, "*b act"], eps: Float[Array, "*b act"], std: Real, noise_clip: Real
) -> Float[Array, "*b act"]:
    """clip(a + clip(std eps, -c, c), -1, 1): target-policy smoothing.

    Reference: TD3 (arXiv:1802.09477), section 5.3.
    """
    return jnp.clip(action + jnp.clip(std * eps, -noise_clip, noise_clip), -1.0, 1.0)


def critic_target(
    policy: Deterministic, critic: Critic, batch: Transition, draws: Draws, config: Config
) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) min_k Q_phi'_k(s', a')."""
    action = smoothed_action(policy(batch.next_observation), draws.eps, config.policy_noise, config.noise_clip)
    q_next = critic(batch.next_observation, action)
    return clipped_double_q_target(batch.reward, batch.terminal, q_next, config.discount)


def policy_loss(
    policy: Deterministic, critic: Critic, batch: Transition, q_weight: Real
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    """-lambda E[Q_1(s, pi_theta(s))] + mean (pi_theta(s) - a)^2; also the second term, and the first over alpha."""
    q = critic.first(batch.observation, policy(batch.observation))
    q_loss, loss = normalised_q_loss(q, q), squared_error(policy, batch)
    return q_weight * q_loss + loss, (loss, q_loss)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """TD3+BC for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    decay, norm = config.decay_updates, config.max_grad_norm
    policy_decay = -(-decay // config.policy_interval)  # the policy's own steps within `decay` updates
    actor_optimiser = clipped_adam(config.actor_learning_rate, norm, policy_decay)
    critic_optimiser = clipped_adam(config.critic_learning_rate, norm, decay)

    def init(key: Key) -> State:
        key_actor, key_critic = jax.random.split(key)
        hidden = (config.width,) * config.depth
        actor, critic = Deterministic(spec, hidden, key_actor), Critic(spec, hidden, key_critic, jax.nn.relu)
        return State(
            actor=start(actor_optimiser, actor),
            target_actor=actor,
            critic=start(critic_optimiser, critic),
            target_critic=critic,
        )

    def improve_policy(state: State, batch: Transition) -> tuple[State, Metrics]:
        critic = state.critic.model
        actor, _, (loss, q_loss), norm = minimise(
            actor_optimiser, state.actor, policy_loss, critic, batch, config.q_weight
        )
        target_actor = moving_average(state.target_actor, actor.model, config.target_rate)
        target_critic = moving_average(state.target_critic, critic, config.target_rate)
        metrics = {"actor/bc_loss": loss, "actor/q_loss": q_loss, "actor/grad_norm": norm}
        return state._replace(actor=actor, target_actor=target_actor, target_critic=target_critic), metrics

    def keep_policy(state: State, batch: Transition) -> tuple[State, Metrics]:
        return state, dict.fromkeys(("actor/bc_loss", "actor/q_loss", "actor/grad_norm"), jnp.float32(jnp.nan))

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        # --- critics ---
        target = critic_target(state.target_actor, state.target_critic, batch, draws, config)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, target)
        metrics = {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}
        state = state._replace(critic=critic)

        # --- policy and target networks, every `policy_interval`-th update ---
        state, of_policy = index.every(config.policy_interval, improve_policy, keep_policy, state, batch)
        return state, metrics | of_policy

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        return state.actor.model(observation)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        target = critic_target(state.target_actor, state.target_critic, batch, draw(batch, key), config)
        loss, q = critic_loss(state.critic.model, batch, target)
        bc = squared_error(state.actor.model, batch)
        metrics = {"critic/td_error": loss / q.shape[0], "critic/q": jnp.mean(q)}
        return metrics | {"actor/bc_loss": bc, "selection/loss": bc}

    return Algorithm(init, (Stage(1, batch, update, draw=draw, period=config.policy_interval),), act, diagnose)


METRICS = {
    "actor/bc_loss": Metric("Squared error of actions", "error", "log"),
    **CRITIC_METRICS,
    "actor/q_loss": Metric("Q term of the policy's loss, -E[Q] / E|Q|"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "selection/loss": Metric("Squared error of actions", scale="log"),
}
