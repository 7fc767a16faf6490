"""BCQ: Q-learning over actions that a model of the data draws and a small network perturbs (arXiv:1812.02900).

    VAE            L(omega) = E[(a - a_hat)^2] + w KL(q(z | s, a) || N(0, I)),   a_hat decoded from z ~ q(. | s, a)
    critic         L(phi)   = sum_j E[(y - Q_phi_j(s, a))^2]
                   y = r + gamma max_i [lambda min_k Q_phi'_k(s', a_i) + (1 - lambda) max_k Q_phi'_k(s', a_i)]
                   a_i = u_i + xi_theta'(s', u_i),   u_i drawn by the VAE at s'
    perturbation   L(theta) = -E[Q_phi_1(s, u + xi_theta(s, u))],   u drawn by the VAE at s,   |xi_theta| <= Phi

It acts by the best of many such actions.

Where this differs from the authors' program: docs/algorithms/bcq.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic
from diffcps.networks.mlp import MLP
from diffcps.networks.vae import VAE
from diffcps.optim import Trained, clipped_adam, descend, moving_average, start
from diffcps.rl.bellman import clipped_double_q_target, td_loss
from diffcps.rl.divergence import vae_loss
from diffcps.rl.improvement import choose_candidate
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import Algorithm, Dataset, Key, Metrics, Real, Scalar, Spec, Transition, UpdateIndex

CITATION = """@inproceedings{fujimoto2019bcq,
  title = {Off-Policy Deep Reinforcement Learning without Exploration},
  author = {Fujimoto, Scott and Meger, David and Precup, Doina},
  booktitle = {International Conference on Machine Learning},
  year = {2019},
  eprint = {1812.02900},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program."""

    max_perturbation: Real = 0.05
    """Phi: how far the perturbation may move an action of the VAE, in each dimension."""
    min_weight: Real = 0.75
    """lambda: weight of the smaller of both target Q; the larger one has the rest."""
    backup_actions: int = 10
    """Next actions per state in the target."""
    kl_weight: Real = 0.5
    """Weight of the VAE's KL term, a mean over latent dimensions."""
    latent_bound: Real = 0.5
    """Latents from which new actions are decoded are clipped to plus and minus this."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which both target networks follow, every update."""
    vae_learning_rate: Real = 1e-3
    """Adam's rate for the VAE."""
    critic_learning_rate: Real = 1e-3
    """Adam's rate for the critics."""
    actor_learning_rate: Real = 1e-3
    """Adam's rate for the perturbation network."""
    max_grad_norm: Real = float("inf")
    """Global norm to which each of the three gradients is clipped; inf: no clipping (authors' program)."""
    decay_updates: int = 0
    """Updates over which all three rates fall to zero along a cosine; 0 keeps them constant."""
    batch_size: int = 100
    """Transitions per update."""
    width: int = 400
    """Units in the first hidden layer of critics and perturbation network."""
    second_width: int = 300
    """Units in their second hidden layer."""
    vae_width: int = 750
    """Units in each of the two hidden layers of the VAE's encoder and decoder."""
    num_candidates: int = 100
    """Candidate actions per observation when acting."""


class State(NamedTuple):
    """What is carried from update to update. The actor is the perturbation network."""

    vae: Trained[VAE]
    critic: Trained[Critic]
    target_critic: Critic
    actor: Trained[MLP]
    target_actor: MLP


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """BCQ for the given sizes. Real-valued fields of `config` may be traced arrays."""
    hidden = (config.width, config.second_width)
    vae_optimiser, critic_optimiser, actor_optimiser = (
        clipped_adam(rate, config.max_grad_norm, config.decay_updates)
        for rate in (config.vae_learning_rate, config.critic_learning_rate, config.actor_learning_rate)
    )

    def init(key: Key) -> State:
        key_vae, key_critic, key_actor = jax.random.split(key, 3)
        critic = Critic(spec, hidden, key_critic, jax.nn.relu)
        actor = MLP((spec.observation_size + spec.action_size, *hidden, spec.action_size), key_actor, jax.nn.relu)
        return State(
            vae=start(vae_optimiser, VAE(spec, config.vae_width, key_vae)),
            critic=start(critic_optimiser, critic),
            target_critic=critic,
            actor=start(actor_optimiser, actor),
            target_actor=actor,
        )

    def batch(dataset: Dataset, key: Key) -> Transition:
        return sample_transitions(dataset, key, config.batch_size)

    def auto_encoding_loss(vae: VAE, batch: Transition, key: Key):
        """Reconstruction of the data's actions, and KL."""
        mean, log_std = vae.encode(batch.observation, batch.action)
        latent = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        reconstruction = vae.decode(batch.observation, latent)
        loss, squared_error, kl = vae_loss(reconstruction, batch.action, mean, log_std, config.kl_weight)
        return loss, (squared_error, kl)

    def perturb(actor: MLP, observation: Float[Array, "*b obs"], action: Float[Array, "*b act"]):
        """u + xi(s, u), clipped to the action box."""
        step = config.max_perturbation * jnp.tanh(actor(jnp.concatenate([observation, action], axis=-1)))
        return jnp.clip(action + step, -1.0, 1.0)

    def sample_actions(vae: VAE, actor: MLP, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        """One perturbed action of the VAE for each observation."""
        latent = vae.draw_latent(key, observation.shape[:-1], config.latent_bound)
        return perturb(actor, observation, vae.decode(observation, latent))

    def repeated(observation: Float[Array, "*b obs"], times: int) -> Float[Array, "*b times obs"]:
        return jnp.repeat(observation[..., None, :], times, axis=-2)

    def first_q(critic: Critic, observation: Float[Array, "*b obs"], action: Float[Array, "*b act"]):
        """Q_1(s, a), without evaluating Q_2."""
        first, _ = critic.pair(jnp.asarray(True))
        return first(observation, action)

    def critic_target(state: State, batch: Transition, key: Key) -> Float[Array, " b"]:
        """y: target critics and target perturbation, but the VAE itself."""
        observation = repeated(batch.next_observation, config.backup_actions)
        action = sample_actions(state.vae.model, state.target_actor, observation, key)
        q = state.target_critic(observation, action)
        soft = config.min_weight * jnp.min(q, axis=0) + (1.0 - config.min_weight) * jnp.max(q, axis=0)
        best = jnp.max(soft, axis=-1)[None]  # an ensemble of one: the minimum is taken already
        return clipped_double_q_target(batch.reward, batch.terminal, best, config.discount)

    def actor_loss(actor: MLP, state: State, batch: Transition, key: Key) -> Scalar:
        """-E[Q_1(s, u + xi(s, u))]."""
        action = sample_actions(state.vae.model, actor, batch.observation, key)
        return -jnp.mean(first_q(state.critic.model, batch.observation, action))

    def update(state: State, batch: Transition, key: Key, index: UpdateIndex) -> tuple[State, Metrics]:
        key_vae, key_target, key_actor = jax.random.split(key, 3)

        # --- VAE ---
        (loss_vae, (squared_error, kl)), gradient = jax.value_and_grad(auto_encoding_loss, has_aux=True)(
            state.vae.model, batch, key_vae
        )
        vae, vae_norm = descend(vae_optimiser, state.vae, gradient)
        state = state._replace(vae=vae)

        # --- critics ---
        target = critic_target(state, batch, key_target)

        def critic_loss(critic: Critic):
            q = critic(batch.observation, batch.action)
            return td_loss(q, target), q

        (loss, q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(state.critic.model)
        critic, critic_norm = descend(critic_optimiser, state.critic, gradient)
        state = state._replace(critic=critic)

        # --- perturbation ---
        loss_actor, gradient = jax.value_and_grad(actor_loss)(state.actor.model, state, batch, key_actor)
        actor, actor_norm = descend(actor_optimiser, state.actor, gradient)
        state = state._replace(actor=actor)

        # --- target networks ---
        target_critic = moving_average(state.target_critic, state.critic.model, config.target_rate)
        target_actor = moving_average(state.target_actor, state.actor.model, config.target_rate)
        state = state._replace(target_critic=target_critic, target_actor=target_actor)

        return state, {
            "vae/loss": loss_vae,
            "vae/squared_error": squared_error,
            "vae/kl": kl,
            "vae/grad_norm": vae_norm,
            "critic/loss": loss,
            "critic/q": jnp.mean(q),
            "critic/grad_norm": critic_norm,
            "actor/loss": loss_actor,
            "actor/grad_norm": actor_norm,
        }

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        key_latent, key_choice = jax.random.split(key)
        observation = repeated(observation, config.num_candidates)
        action = sample_actions(state.vae.model, state.actor.model, observation, key_latent)
        q = first_q(state.critic.model, observation, action)
        return choose_candidate(action, q, "argmax_q", 1.0, key_choice)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        key_vae, key_target, key_actor = jax.random.split(key, 3)
        batch = transitions(rows)
        q = state.critic.model(batch.observation, batch.action)
        loss_vae, (squared_error, kl) = auto_encoding_loss(state.vae.model, batch, key_vae)
        return {
            "vae/loss": loss_vae,
            "vae/squared_error": squared_error,
            "vae/kl": kl,
            "critic/td_error": td_loss(q, critic_target(state, batch, key_target)) / q.shape[0],
            "critic/q": jnp.mean(q),
            "actor/loss": actor_loss(state.actor.model, state, batch, key_actor),
            "selection/loss": loss_vae,
        }

    return Algorithm(init, batch, update, act, diagnose)
