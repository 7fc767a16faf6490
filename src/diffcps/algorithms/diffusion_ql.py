"""Diffusion-QL: a diffusion policy with a Q-learning term added to its denoising loss (arXiv:2208.06193).

    critic   L(phi)   = sum_j E[(r + gamma min_k Q_phi'_k(s', a') - Q_phi_j(s, a))^2],   a' ~ pi_theta'(. | s')
    policy   L(theta) = L_d(theta) + eta L_q(theta),   L_q = -E[Q(s, a_theta)] / E|Q|

L_d is the denoising loss on the data's actions; a_theta is the end of the whole reverse chain, and the gradient runs
through all its steps. The weight eta is fixed, where DiffCPS moves a multiplier.

Where this differs from the authors' program: docs/algorithms/diffusion_ql.md, "Deviations".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffcps.diffusion.loss import denoising_loss
from diffcps.diffusion.sampler import draw_noise, sample_ancestral
from diffcps.diffusion.schedule import Schedule, ScheduleName, make_schedule
from diffcps.networks.critic import Critic
from diffcps.networks.denoiser import Denoiser
from diffcps.optim import Trained, clipped_adam, descend, moving_average, start
from diffcps.rl.bellman import clipped_double_q_target, max_over_candidates, td_loss
from diffcps.rl.improvement import ActionChoice, choose_candidate, normalised_q_loss
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import Algorithm, Dataset, Key, Metrics, Real, Scalar, Spec, Transition, UpdateIndex

CITATION = """@inproceedings{wang2023diffusionql,
  title = {Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning},
  author = {Wang, Zhendong and Hunt, Jonathan J. and Zhou, Mingyuan},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  eprint = {2208.06193},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the Gym locomotion tasks in the authors' program."""

    q_weight: Real = 1.0
    """Weight eta of the Q-learning term (per task in the authors' table)."""
    max_q_backup: bool = False
    """Back up the best of `backup_actions` next actions for each Q (authors' program: five AntMaze tasks)."""
    backup_actions: int = 10
    """Next actions per state in the max-Q backup (authors' program)."""
    num_steps: int = 5
    """Diffusion steps T."""
    schedule: ScheduleName = "vp"
    """Noise schedule beta_i (authors' program: vp)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target critics follow the critics, every update."""
    ema_rate: Real = 0.005
    """Rate at which the target policy follows the policy, every `ema_every` updates (authors' program: 1 - 0.995)."""
    ema_every: int = 5
    """Updates between two moves of the target policy (authors' program)."""
    ema_start: int = 1000
    """First update at which the target policy moves; before it stays the initial network (authors' program)."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the policy (per task in the authors' table)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (authors' program: 3e-4 on every task)."""
    max_grad_norm: Real = 9.0
    """Global norm to which both gradients are clipped (authors' program, per task); inf: no clipping."""
    decay_updates: int = 0
    """Updates over which both rates fall to zero along a cosine; 0 keeps them constant."""
    batch_size: int = 256
    """Transitions per update."""
    width: int = 256
    """Units per hidden layer, policy and critics."""
    depth: int = 3
    """Hidden layers, policy and critics."""
    time_size: int = 16
    """Size of the time embedding (authors' program)."""
    action_choice: ActionChoice = "softmax_q"
    """How to act: sample an action, or draw (softmax_q) or pick (argmax_q) among candidates by min Q of the targets."""
    num_candidates: int = 50
    """Candidate actions per observation when acting by Q (authors' program)."""
    candidate_temperature: Real = 1.0
    """Temperature of softmax_q (authors' program)."""
    act_with_target: bool = False
    """Act with the target (EMA) policy instead of the policy itself (authors' program: no)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[Denoiser]
    target_actor: Denoiser
    critic: Trained[Critic]
    target_critic: Critic


class Draws(NamedTuple):
    """All randomness of one update, drawn at its start, so that a test can put recorded numbers in its place."""

    next_noise: Float[Array, "steps b *k act"]
    """Reverse chain of a' ~ pi_theta'(. | s')."""
    t: Int[Array, " b"]
    """Diffusion steps in the denoising loss, uniform on 0..T-1."""
    eps: Float[Array, "b act"]
    """Noise in the denoising loss."""
    noise: Float[Array, "steps b act"]
    """Reverse chain of a ~ pi_theta(. | s)."""
    maximise_first: Bool[Array, ""]
    """The coin: which Q is maximised; the other one divides."""


DrawFunction = Callable[[Config, Schedule, Transition, Key], Draws]


def draw(config: Config, schedule: Schedule, batch: Transition, key: Key) -> Draws:
    """The random numbers of one update."""
    key_next, key_t, key_eps, key_noise, key_coin = jax.random.split(key, 5)
    shape = batch.action.shape
    next_shape = (shape[0], config.backup_actions, shape[1]) if config.max_q_backup else shape
    return Draws(
        next_noise=draw_noise(key_next, schedule, next_shape),
        t=jax.random.randint(key_t, shape[:1], 0, schedule.num_steps),
        eps=jax.random.normal(key_eps, shape),
        noise=draw_noise(key_noise, schedule, shape),
        maximise_first=jax.random.bernoulli(key_coin),
    )


def make(config: Config, spec: Spec, draw: DrawFunction = draw) -> Algorithm[State]:
    """Diffusion-QL for the given sizes. Real-valued fields of `config` may be traced arrays."""
    schedule = make_schedule(config.schedule, config.num_steps)
    decay, norm = config.decay_updates, config.max_grad_norm
    actor_optimiser = clipped_adam(config.actor_learning_rate, norm, decay)
    critic_optimiser = clipped_adam(config.critic_learning_rate, norm, decay)

    def init(key: Key) -> State:
        key_actor, key_critic = jax.random.split(key)
        actor = Denoiser(spec, config.width, config.depth, config.time_size, key_actor)
        critic = Critic(spec, (config.width,) * config.depth, key_critic)
        return State(
            actor=start(actor_optimiser, actor),
            target_actor=actor,
            critic=start(critic_optimiser, critic),
            target_critic=critic,
        )

    def batch(dataset: Dataset, key: Key) -> Transition:
        return sample_transitions(dataset, key, config.batch_size)

    def sample_action(denoiser: Denoiser, observation, noise):
        """a ~ pi_theta(. | s) by the reverse chain, clipped to the action box at every step."""
        return sample_ancestral(schedule, denoiser.given(observation, config.num_steps), noise)

    def bc_loss(denoiser: Denoiser, batch: Transition, draws: Draws) -> Scalar:
        """L_d: the denoising loss on the data's actions."""
        denoise = denoiser.given(batch.observation, config.num_steps)
        return denoising_loss(schedule, denoise, batch.action, draws.t, draws.eps)

    def critic_target(state: State, batch: Transition, draws: Draws) -> Float[Array, " b"]:
        """y = r + gamma (1 - d) min_k Q_phi'_k(s', a'), a' ~ pi_theta'(. | s')."""
        observation = batch.next_observation
        if config.max_q_backup:
            observation = jnp.repeat(observation[:, None, :], config.backup_actions, axis=1)
        q_next = state.target_critic(observation, sample_action(state.target_actor, observation, draws.next_noise))
        if config.max_q_backup:
            q_next = max_over_candidates(q_next)
        return clipped_double_q_target(batch.reward, batch.terminal, q_next, config.discount)

    def actor_loss(actor: Denoiser, state: State, batch: Transition, draws: Draws):
        """L_d + eta L_q."""
        action = sample_action(actor, batch.observation, draws.noise)
        maximised, other = state.critic.model.pair(draws.maximise_first)
        q_loss = normalised_q_loss(maximised(batch.observation, action), other(batch.observation, action))
        loss = bc_loss(actor, batch, draws)
        return loss + config.q_weight * q_loss, (loss, q_loss)

    def update(state: State, batch: Transition, key: Key, index: UpdateIndex) -> tuple[State, Metrics]:
        draws = draw(config, schedule, batch, key)

        # --- critics ---
        target = critic_target(state, batch, draws)

        def critic_loss(critic: Critic):
            q = critic(batch.observation, batch.action)
            return td_loss(q, target), q

        (loss, q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(state.critic.model)
        critic, critic_norm = descend(critic_optimiser, state.critic, gradient)
        state = state._replace(critic=critic)

        # --- policy ---
        gradient, (loss_bc, loss_q) = jax.grad(actor_loss, has_aux=True)(state.actor.model, state, batch, draws)
        actor, actor_norm = descend(actor_optimiser, state.actor, gradient)
        state = state._replace(actor=actor)

        # --- target networks ---
        moves = (index >= config.ema_start) & (index % config.ema_every == 0)
        target_actor = jax.lax.cond(
            moves,
            moving_average,
            lambda average, new, rate: average,
            state.target_actor,
            state.actor.model,
            config.ema_rate,
        )
        target_critic = moving_average(state.target_critic, state.critic.model, config.target_rate)
        state = state._replace(target_actor=target_actor, target_critic=target_critic)

        return state, {
            "critic/loss": loss,
            "critic/q": jnp.mean(q),
            "critic/grad_norm": critic_norm,
            "actor/bc_loss": loss_bc,
            "actor/q_loss": loss_q,
            "actor/grad_norm": actor_norm,
        }

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        key_noise, key_choice = jax.random.split(key)
        actor = state.target_actor if config.act_with_target else state.actor.model
        num_candidates = 1 if config.action_choice == "sample" else config.num_candidates
        observation = observation[..., None, :]
        shape = (*observation.shape[:-2], num_candidates, spec.action_size)
        action = sample_action(actor, observation, draw_noise(key_noise, schedule, shape))
        observation = jnp.broadcast_to(observation, (*shape[:-1], spec.observation_size))
        q = jnp.min(state.target_critic(observation, action), axis=0)
        return choose_candidate(action, q, config.action_choice, config.candidate_temperature, key_choice)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        draws = draw(config, schedule, batch, key)
        q = state.critic.model(batch.observation, batch.action)
        target_bc_loss = bc_loss(state.target_actor, batch, draws)
        return {
            "critic/td_error": td_loss(q, critic_target(state, batch, draws)) / q.shape[0],
            "critic/q": jnp.mean(q),
            "actor/bc_loss": bc_loss(state.actor.model, batch, draws),
            "actor/target_bc_loss": target_bc_loss,
            "selection/loss": target_bc_loss,
        }

    return Algorithm(init, batch, update, act, diagnose)
