"""TD3+BC: TD3 with a behaviour-cloning term in the policy's loss (arXiv:2106.06860).

    critic   L(phi)   = sum_j E[(r + gamma min_k Q_phi'_k(s', a') - Q_phi_j(s, a))^2]
                        a' = clip(pi_theta'(s') + clip(sigma eps, -c, c), -1, 1),   eps ~ N(0, I)
    policy   L(theta) = -lambda E[Q_phi_1(s, pi_theta(s))] + mean (pi_theta(s) - a)^2,   lambda = alpha / E|Q_phi_1|

The policy is deterministic. It and all target networks move in every second update only.

Where this differs from the authors' program: docs/algorithms/td3_bc.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic
from diffcps.networks.gaussian import Deterministic
from diffcps.optim import Trained, clipped_adam, descend, moving_average, start
from diffcps.rl.bellman import clipped_double_q_target, td_loss
from diffcps.rl.improvement import normalised_q_loss
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import Algorithm, Dataset, Key, Metrics, Real, Scalar, Spec, Transition, UpdateIndex

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
    decay_updates: int = 0
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


def smoothed_action(
    action: Float[Array, "*b act"], eps: Float[Array, "*b act"], std: Real, noise_clip: Real
) -> Float[Array, "*b act"]:
    """clip(a + clip(std eps, -c, c), -1, 1): target-policy smoothing.

    Reference: TD3 (arXiv:1802.09477), section 5.3.
    """
    return jnp.clip(action + jnp.clip(std * eps, -noise_clip, noise_clip), -1.0, 1.0)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """TD3+BC for the given sizes. Real-valued fields of `config` may be traced arrays."""
    decay, norm = config.decay_updates, config.max_grad_norm
    policy_decay = -(-decay // config.policy_interval)  # the policy's own steps within `decay` updates
    actor_optimiser = clipped_adam(config.actor_learning_rate, norm, policy_decay)
    critic_optimiser = clipped_adam(config.critic_learning_rate, norm, decay)
    hidden = (config.width,) * config.depth

    def init(key: Key) -> State:
        key_actor, key_critic = jax.random.split(key)
        actor = Deterministic(spec, hidden, key_actor)
        critic = Critic(spec, hidden, key_critic, jax.nn.relu)
        return State(
            actor=start(actor_optimiser, actor),
            target_actor=actor,
            critic=start(critic_optimiser, critic),
            target_critic=critic,
        )

    def batch(dataset: Dataset, key: Key) -> Transition:
        return sample_transitions(dataset, key, config.batch_size)

    def critic_target(state: State, batch: Transition, key: Key) -> Float[Array, " b"]:
        """y = r + gamma (1 - d) min_k Q_phi'_k(s', a')."""
        eps = jax.random.normal(key, batch.action.shape)
        action = smoothed_action(
            state.target_actor(batch.next_observation), eps, config.policy_noise, config.noise_clip
        )
        q_next = state.target_critic(batch.next_observation, action)
        return clipped_double_q_target(batch.reward, batch.terminal, q_next, config.discount)

    def bc_loss(actor: Deterministic, batch: Transition) -> Scalar:
        """mean (pi_theta(s) - a)^2 over the batch and the dimensions of the action."""
        return jnp.mean(jnp.square(actor(batch.observation) - batch.action))

    def actor_loss(actor: Deterministic, critic: Critic, batch: Transition):
        """-lambda E[Q_1(s, pi_theta(s))] + mean (pi_theta(s) - a)^2."""
        first, _ = critic.pair(jnp.asarray(True))
        q = first(batch.observation, actor(batch.observation))
        q_loss, loss = normalised_q_loss(q, q), bc_loss(actor, batch)
        return config.q_weight * q_loss + loss, (loss, q_loss)

    def improve_policy(state: State, batch: Transition) -> tuple[State, Metrics]:
        gradient, (loss_bc, loss_q) = jax.grad(actor_loss, has_aux=True)(state.actor.model, state.critic.model, batch)
        actor, actor_norm = descend(actor_optimiser, state.actor, gradient)
        state = state._replace(
            actor=actor,
            target_actor=moving_average(state.target_actor, actor.model, config.target_rate),
            target_critic=moving_average(state.target_critic, state.critic.model, config.target_rate),
        )
        return state, {"actor/bc_loss": loss_bc, "actor/q_loss": loss_q, "actor/grad_norm": actor_norm}

    def keep_policy(state: State, batch: Transition) -> tuple[State, Metrics]:
        return state, dict.fromkeys(("actor/bc_loss", "actor/q_loss", "actor/grad_norm"), jnp.float32(jnp.nan))

    def update(state: State, batch: Transition, key: Key, index: UpdateIndex) -> tuple[State, Metrics]:
        # --- critics ---
        target = critic_target(state, batch, key)

        def critic_loss(critic: Critic):
            q = critic(batch.observation, batch.action)
            return td_loss(q, target), q

        (loss, q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(state.critic.model)
        critic, critic_norm = descend(critic_optimiser, state.critic, gradient)
        state = state._replace(critic=critic)

        # --- policy and target networks, every `policy_interval`-th update ---
        state, metrics = jax.lax.cond(index % config.policy_interval == 0, improve_policy, keep_policy, state, batch)

        return state, metrics | {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": critic_norm}

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        return state.actor.model(observation)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        q = state.critic.model(batch.observation, batch.action)
        loss = bc_loss(state.actor.model, batch)
        return {
            "critic/td_error": td_loss(q, critic_target(state, batch, key)) / q.shape[0],
            "critic/q": jnp.mean(q),
            "actor/bc_loss": loss,
            "selection/loss": loss,
        }

    return Algorithm(init, batch, update, act, diagnose)
