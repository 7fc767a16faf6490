"""Diffusion-QL: a diffusion policy with a Q-learning term added to its denoising loss (arXiv:2208.06193).

    critic   L(phi)   = sum_j E[(r + gamma min_k Q_phi'_k(s', a') - Q_phi_j(s, a))^2],   a' ~ pi_theta'(. | s')
    policy   L(theta) = L_d(theta) + eta L_q(theta),   L_q = -E[Q(s, a_theta)] / E|Q|

L_d is the denoising loss on the data's actions; a_theta is the end of the whole reverse chain, and the gradient runs
through all its steps. The weight eta is fixed, where DiffCPS moves a multiplier.

Where this differs from the authors' program: docs/algorithms/diffusion_ql.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.diffusion.schedule import Schedule, ScheduleName, make_schedule
from diffcps.networks.critic import Critic
from diffcps.networks.denoiser import Denoiser
from diffcps.optim import Trained, clipped_adam, minimise, moving_average, moving_average_when, start
from diffcps.policies.diffusion import Draws, act_by_q, bc_loss, draw, next_q, sample_action
from diffcps.rl.bellman import CRITIC_METRICS, clipped_double_q_target, critic_loss
from diffcps.rl.improvement import ActionChoice, normalised_q_loss
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
    ema_start: Count = 1000
    """First update at which the target policy moves; before it stays the initial network (authors' program)."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the policy (per task in the authors' table)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (authors' program: 3e-4 on every task)."""
    max_grad_norm: Real = 9.0
    """Global norm to which both gradients are clipped (authors' program, per task); inf: no clipping."""
    decay_updates: Count = 0
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


def critic_target(
    policy: Denoiser, critic: Critic, schedule: Schedule, batch: Transition, draws: Draws, config: Config
) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) min_k Q_phi'_k(s', a'), a' ~ pi_theta'(. | s')."""
    q_next = next_q(policy, critic, schedule, batch.next_observation, draws.next_noise)
    return clipped_double_q_target(batch.reward, batch.terminal, q_next, config.discount)


def policy_loss(
    policy: Denoiser,
    critic: Critic,
    schedule: Schedule,
    batch: Transition,
    draws: Draws,
    config: Config,
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    """L_d + eta L_q, L_q = -E[Q(s, a_theta)] / E|Q|; also both terms."""
    loss = bc_loss(policy, schedule, batch, draws)
    action = sample_action(policy, schedule, batch.observation, draws.noise)
    maximised, other = critic.pair(draws.maximise_first)
    q_loss = normalised_q_loss(maximised(batch.observation, action), other(batch.observation, action))
    return loss + config.q_weight * q_loss, (loss, q_loss)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """Diffusion-QL for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    schedule = make_schedule(config.schedule, config.num_steps)
    drawn = partial(draw, schedule, (config.backup_actions,) if config.max_q_backup else ())
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

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        # --- critics ---
        target = critic_target(state.target_actor, state.target_critic, schedule, batch, draws, config)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, target)
        metrics = {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}
        state = state._replace(critic=critic)

        # --- policy ---
        actor, _, (loss, q_loss), norm = minimise(
            actor_optimiser, state.actor, policy_loss, state.critic.model, schedule, batch, draws, config
        )
        metrics |= {"actor/bc_loss": loss, "actor/q_loss": q_loss, "actor/grad_norm": norm}
        state = state._replace(actor=actor)

        # --- target networks ---
        moves = (index.count >= config.ema_start) & (index.count % config.ema_every == 0)
        target_actor = moving_average_when(moves, state.target_actor, state.actor.model, config.ema_rate)
        target_critic = moving_average(state.target_critic, state.critic.model, config.target_rate)
        return state._replace(target_actor=target_actor, target_critic=target_critic), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        actor = state.target_actor if config.act_with_target else state.actor.model
        how = config.action_choice, config.num_candidates, config.candidate_temperature
        return act_by_q(actor, state.target_critic, schedule, observation, *how, key)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        draws = drawn(batch, key)
        target = critic_target(state.target_actor, state.target_critic, schedule, batch, draws, config)
        loss, q = critic_loss(state.critic.model, batch, target)
        bc, target_bc = (bc_loss(policy, schedule, batch, draws) for policy in (state.actor.model, state.target_actor))
        return {
            "critic/td_error": loss / q.shape[0],
            "critic/q": jnp.mean(q),
            "actor/bc_loss": bc,
            "actor/target_bc_loss": target_bc,
            "selection/loss": target_bc,
        }

    return Algorithm(init, (Stage(1, batch, update, draw=drawn),), act, diagnose)


METRICS = {
    "actor/bc_loss": Metric("Denoising loss $L_d$", "L_d", "log"),
    **CRITIC_METRICS,
    "actor/q_loss": Metric("Q term of the policy's loss, -E[Q] / E|Q|"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "actor/target_bc_loss": Metric("Denoising loss $L_d$ of the target policy", scale="log"),
    "selection/loss": Metric("Denoising loss $L_d$ of the target policy", scale="log"),
}
