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
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic
from diffcps.networks.mlp import MLP
from diffcps.networks.vae import LATENT_SIZES, VAE, draw_latent
from diffcps.optim import Trained, clipped_adam, minimise, moving_average, start
from diffcps.policies.vae import VAE_METRICS, auto_encoding_loss
from diffcps.rl.bellman import CRITIC_METRICS, critic_loss, soft_clipped_target
from diffcps.rl.improvement import choose_candidate, repeated
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
    decay_updates: Count = 0
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


class Draws(NamedTuple):
    """All randomness of one update."""

    noise: Float[Array, "b latent"]
    """Of the latents from which the VAE reconstructs the data's actions."""
    next_latent: Float[Array, "b k latent"]
    """Latents of u_i at s'."""
    latent: Float[Array, "b latent"]
    """Latents of u at s."""


def draw(config: Config, batch: Transition, key: Key) -> Draws:
    """The random numbers of one update."""
    key_vae, key_target, key_actor = jax.random.split(key, 3)
    size, action_size = batch.action.shape
    noise = jax.random.normal(key_vae, (size, LATENT_SIZES * action_size))
    next_latent = draw_latent(key_target, (size, config.backup_actions), action_size, config.latent_bound)
    return Draws(noise, next_latent, draw_latent(key_actor, (size,), action_size, config.latent_bound))


def perturbed_action(
    vae: VAE,
    actor: MLP,
    observation: Float[Array, "*b obs"],
    latent: Float[Array, "*b latent"],
    max_perturbation: Real,
) -> Float[Array, "*b act"]:
    """u + xi_theta(s, u), u decoded by the VAE, clipped to the action box."""
    action = vae.decode(observation, latent)
    step = max_perturbation * jnp.tanh(actor(jnp.concatenate([observation, action], axis=-1)))
    return jnp.clip(action + step, -1.0, 1.0)


def critic_target(
    vae: VAE, actor: MLP, critic: Critic, batch: Transition, draws: Draws, config: Config
) -> Float[Array, " b"]:
    """y: target critics and target perturbation, but the VAE itself."""
    observation = repeated(batch.next_observation, config.backup_actions)
    action = perturbed_action(vae, actor, observation, draws.next_latent, config.max_perturbation)
    q_next = critic(observation, action)
    return soft_clipped_target(batch.reward, batch.terminal, q_next, config.min_weight, config.discount)


def perturbation_loss(actor: MLP, vae: VAE, critic: Critic, batch: Transition, draws: Draws, config: Config) -> Scalar:
    """-E[Q_1(s, u + xi_theta(s, u))]."""
    action = perturbed_action(vae, actor, batch.observation, draws.latent, config.max_perturbation)
    return -jnp.mean(critic.first(batch.observation, action))


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """BCQ for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    vae_optimiser, critic_optimiser, actor_optimiser = (
        clipped_adam(rate, config.max_grad_norm, config.decay_updates)
        for rate in (config.vae_learning_rate, config.critic_learning_rate, config.actor_learning_rate)
    )

    def init(key: Key) -> State:
        key_vae, key_critic, key_actor = jax.random.split(key, 3)
        hidden = (config.width, config.second_width)
        critic = Critic(spec, hidden, key_critic, jax.nn.relu)
        actor = MLP((spec.observation_size + spec.action_size, *hidden, spec.action_size), key_actor, jax.nn.relu)
        return State(
            vae=start(vae_optimiser, VAE(spec, config.vae_width, key_vae)),
            critic=start(critic_optimiser, critic),
            target_critic=critic,
            actor=start(actor_optimiser, actor),
            target_actor=actor,
        )

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        # --- VAE ---
        vae, loss, (squared_error, kl), norm = minimise(
            vae_optimiser, state.vae, auto_encoding_loss, batch, draws.noise, config.kl_weight
        )
        metrics = {"vae/loss": loss, "vae/squared_error": squared_error, "vae/kl": kl, "vae/grad_norm": norm}

        # --- critics ---
        target = critic_target(vae.model, state.target_actor, state.target_critic, batch, draws, config)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, target)
        metrics |= {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}

        # --- perturbation ---
        actor, loss, _, norm = minimise(
            actor_optimiser, state.actor, perturbation_loss, vae.model, critic.model, batch, draws, config
        )
        metrics |= {"actor/loss": loss, "actor/grad_norm": norm}

        # --- target networks ---
        target_critic = moving_average(state.target_critic, critic.model, config.target_rate)
        target_actor = moving_average(state.target_actor, actor.model, config.target_rate)
        return State(vae, critic, target_critic, actor, target_actor), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        key_latent, key_choice = jax.random.split(key)
        observation = repeated(observation, config.num_candidates)
        latent = draw_latent(key_latent, observation.shape[:-1], spec.action_size, config.latent_bound)
        action = perturbed_action(state.vae.model, state.actor.model, observation, latent, config.max_perturbation)
        q = state.critic.model.first(observation, action)
        return choose_candidate(action, q, "argmax_q", 1.0, key_choice)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        draws = draw(config, batch, key)
        vae, critic = state.vae.model, state.critic.model
        vae_loss, (squared_error, kl) = auto_encoding_loss(vae, batch, draws.noise, config.kl_weight)
        target = critic_target(vae, state.target_actor, state.target_critic, batch, draws, config)
        loss, q = critic_loss(critic, batch, target)
        return {
            "vae/loss": vae_loss,
            "vae/squared_error": squared_error,
            "vae/kl": kl,
            "critic/td_error": loss / q.shape[0],
            "critic/q": jnp.mean(q),
            "actor/loss": perturbation_loss(state.actor.model, vae, critic, batch, draws, config),
            "selection/loss": vae_loss,
        }

    return Algorithm(init, (Stage(1, batch, update, draw=partial(draw, config)),), act, diagnose)


METRICS = {
    **VAE_METRICS,
    **CRITIC_METRICS,
    "actor/loss": Metric("Loss of the perturbation, -Q of its actions", "-Q(ξ)"),
    "actor/grad_norm": Metric("Norm of the perturbation's gradient", scale="log"),
    "selection/loss": Metric("VAE loss", scale="log"),
}
