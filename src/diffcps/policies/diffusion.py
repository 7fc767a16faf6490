"""Diffusion policies: sampling, the loss that ties them to the data, and how Q-learning uses them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffcps.diffusion.loss import denoising_loss
from diffcps.diffusion.sampler import draw_noise, sample_ancestral
from diffcps.diffusion.schedule import Schedule
from diffcps.networks.critic import Critic
from diffcps.networks.denoiser import Denoiser
from diffcps.rl.bellman import max_over_candidates
from diffcps.rl.improvement import ActionChoice, choose_candidate, repeated
from diffcps.types import Key, Real, Scalar, Transition


def sample_action(
    policy: Denoiser, schedule: Schedule, observation: Float[Array, "*#b obs"], noise: Float[Array, "steps *b act"]
) -> Float[Array, "*b act"]:
    """a ~ policy(. | s) by the whole reverse chain, clipped to the action box at every step."""
    return sample_ancestral(schedule, policy.given(observation, schedule.num_steps), noise)


# --- What an update draws ---


class BCDraws(NamedTuple):
    """All randomness of a denoising loss."""

    t: Int[Array, " b"]
    """Diffusion steps, uniform on 0..T-1."""
    eps: Float[Array, "b act"]
    """The noise that is to be predicted."""


def draw_bc(schedule: Schedule, batch: Transition, key: Key) -> BCDraws:
    """The random numbers of one denoising loss."""
    key_t, key_eps = jax.random.split(key)
    t = jax.random.randint(key_t, batch.action.shape[:1], 0, schedule.num_steps)
    return BCDraws(t, jax.random.normal(key_eps, batch.action.shape))


class Draws(NamedTuple):
    """All randomness of one update of Q-learning with a diffusion policy."""

    next_noise: Float[Array, "steps b *k act"]
    """Reverse chain of a', drawn by the target policy at s'."""
    t: Int[Array, " b"]
    """Diffusion steps in the denoising loss, uniform on 0..T-1."""
    eps: Float[Array, "b act"]
    """Noise in the denoising loss."""
    noise: Float[Array, "steps b act"]
    """Reverse chain of a, drawn by the policy at s."""
    maximise_first: Bool[Array, ""]
    """The coin: which Q is maximised; the other one divides."""


def draw(schedule: Schedule, backup: tuple[int, ...], batch: Transition, key: Key) -> Draws:
    """The random numbers of one update; `backup` is (k,) for a max-Q backup over k next actions, and () without."""
    key_next, key_t, key_eps, key_noise, key_coin = jax.random.split(key, 5)
    size, action_size = batch.action.shape
    return Draws(
        next_noise=draw_noise(key_next, schedule, (size, *backup, action_size)),
        t=jax.random.randint(key_t, (size,), 0, schedule.num_steps),
        eps=jax.random.normal(key_eps, (size, action_size)),
        noise=draw_noise(key_noise, schedule, (size, action_size)),
        maximise_first=jax.random.bernoulli(key_coin),
    )


# --- What a loss is made of ---


def bc_loss(policy: Denoiser, schedule: Schedule, batch: Transition, draws: BCDraws | Draws) -> Scalar:
    """The denoising loss on the data's actions."""
    denoise = policy.given(batch.observation, schedule.num_steps)
    return denoising_loss(schedule, denoise, batch.action, draws.t, draws.eps)


def next_q(
    policy: Denoiser,
    critic: Critic,
    schedule: Schedule,
    observation: Float[Array, "b obs"],
    noise: Float[Array, "steps b *k act"],
) -> Float[Array, "n b"]:
    """Q_j(s', a'), a' ~ policy(. | s'); with k actions for each state, the largest of each Q_j (max-Q backup)."""
    if noise.ndim == 3:
        return critic(observation, sample_action(policy, schedule, observation, noise))
    observation = repeated(observation, noise.shape[2])
    return max_over_candidates(critic(observation, sample_action(policy, schedule, observation, noise)))


# --- Acting ---


def candidates(
    policy: Denoiser, critic: Critic, schedule: Schedule, observation: Float[Array, "*b obs"], count: int, key: Key
) -> tuple[Float[Array, "*b k act"], Float[Array, "n *b k"]]:
    """`count` actions of the policy for each observation, and each Q_j of them."""
    observation = observation[..., None, :]
    noise = draw_noise(key, schedule, (*observation.shape[:-2], count, policy.action_size))
    action = sample_action(policy, schedule, observation, noise)
    return action, critic(jnp.broadcast_to(observation, (*action.shape[:-1], observation.shape[-1])), action)


def act_by_q(
    policy: Denoiser,
    critic: Critic,
    schedule: Schedule,
    observation: Float[Array, "*b obs"],
    choice: ActionChoice,
    num_candidates: int,
    temperature: Real,
    key: Key,
) -> Float[Array, "*b act"]:
    """A sample of the policy, or one of several, chosen by min_j Q_j."""
    key_noise, key_choice = jax.random.split(key)
    count = 1 if choice == "sample" else num_candidates
    action, q = candidates(policy, critic, schedule, observation, count, key_noise)
    return choose_candidate(action, jnp.min(q, axis=0), choice, temperature, key_choice)
