"""DiffCPS: diffusion-based constrained policy search (arXiv:2310.05333).

    max_theta  E[Q(s, a_theta)]   subject to   H(pi_b, mu_theta) <= kappa_0                                     (eq. 12)

The cross-entropy H is approximated by a constant plus the denoising loss L_c                                   (eq. 16)

    L_c(theta) = E ||eps - eps_theta(sqrt(abar_i) a + sqrt(1 - abar_i) eps, s, i)||^2,   (s, a) ~ data          (eq. 36)

and the problem is solved by gradient steps on the primal and the dual in turn:

    critic      L(phi)    = sum_j E[(r + gamma min_k Q_phi'_k(s', a') - Q_phi_j(s, a))^2]            (alg. 1, lines 7-8)
    policy      L(theta)  = -E[Q(s, a_theta)] / E|Q| + lambda (L_c - kappa)                                     (eq. 17)
    multiplier  L(lambda) = lambda (kappa - L_c),   lambda >= c                                                 (eq. 18)

Where this differs from the paper's text: docs/algorithms/diffcps.md, "Deviations".
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
from diffcps.rl.dual import dual_loss, lagrangian
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

CITATION = """@misc{he2023diffcps,
  title = {DiffCPS: Diffusion-based Constrained Policy Search for Offline Reinforcement Learning},
  author = {He, Longxiang and Shen, Li and Zhang, Linrui and Tan, Junbo and Wang, Xueqian},
  year = {2023},
  eprint = {2310.05333},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the Gym locomotion tasks (paper, Table 4 and appendix C)."""

    kappa: Real = 0.05
    """Bound kappa on the denoising loss L_c, averaged over action dimensions (eq. 16; per task in Table 4)."""
    multiplier_init: Real = 1.0
    """Initial Lagrange multiplier lambda_0 (authors' program)."""
    multiplier_min: Real = 0.0
    """Lower bound c = lambda_clip of lambda where it is used (algorithm 1, line 15; Table 4)."""
    multiplier_max: Real = 100.0
    """Upper bound of lambda where it is used (authors' program)."""
    penalty: Real = 0.0
    """Weight of the augmented Lagrangian's term max(0, L_c - kappa)^2 / 2 (appendix G); 0 is algorithm 1."""
    policy_interval: int = 2
    """Policy evaluation interval d: policy and multiplier move every d-th update (algorithm 1, line 9; Table 4)."""
    max_q_backup: bool = False
    """Back up the best of `backup_actions` next actions for each Q (authors' program; AntMaze tasks of Table 4)."""
    backup_actions: int = 10
    """Next actions per state in the max-Q backup (authors' program)."""
    num_steps: int = 5
    """Diffusion steps T (section 4.1)."""
    schedule: ScheduleName = "vp"
    """Noise schedule beta_i (section 3.2: vp)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate 1 - rho at which the target critics follow the critics, every update (algorithm 1, line 18)."""
    ema_rate: Real = 0.005
    """Rate at which the target policy follows the policy, every `ema_every` updates (authors' program: 1 - 0.995)."""
    ema_every: int = 5
    """Updates between two moves of the target policy (authors' program)."""
    ema_start: Count = 1000
    """First update at which the target policy moves; before it stays the initial network (authors' program)."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the policy (Table 4)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (authors' program: 3e-4 on every task)."""
    multiplier_learning_rate: Real = 3e-5
    """Adam's rate eta for lambda (authors' program)."""
    max_grad_norm: Real = 9.0
    """Global norm to which each of the three gradients is clipped (authors' program, per task); inf: no clipping."""
    decay_updates: Count = 0
    """Updates over which all three rates fall to zero along a cosine; 0 keeps them constant."""
    batch_size: int = 256
    """Transitions per update."""
    width: int = 256
    """Units per hidden layer, policy and critics (appendix C)."""
    depth: int = 3
    """Hidden layers, policy and critics (appendix C)."""
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
    multiplier: Trained[Scalar]
    """Stored as the optimiser leaves it; clamped to [multiplier_min, multiplier_max] where it is used."""


def critic_target(
    policy: Denoiser, critic: Critic, schedule: Schedule, batch: Transition, draws: Draws, config: Config
) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) min_k Q_phi'_k(s', a'), a' ~ mu_theta'(. | s') (algorithm 1, lines 6-7)."""
    q_next = next_q(policy, critic, schedule, batch.next_observation, draws.next_noise)
    return clipped_double_q_target(batch.reward, batch.terminal, q_next, config.discount)


def clipped_multiplier(stored: Scalar, config: Config) -> Scalar:
    """lambda_clip (algorithm 1, line 15)."""
    return jnp.clip(stored, config.multiplier_min, config.multiplier_max)


def policy_loss(
    policy: Denoiser,
    critic: Critic,
    multiplier: Scalar,
    schedule: Schedule,
    batch: Transition,
    draws: Draws,
    config: Config,
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    """-E[Q(s, a_theta)] / E|Q| + lambda (L_c - kappa) (eq. 17); also L_c (eqs. 16 and 36) and the first term."""
    loss = bc_loss(policy, schedule, batch, draws)
    action = sample_action(policy, schedule, batch.observation, draws.noise)
    maximised, other = critic.pair(draws.maximise_first)
    q_loss = normalised_q_loss(maximised(batch.observation, action), other(batch.observation, action))
    return lagrangian(q_loss, multiplier, loss, config.kappa, config.penalty), (loss, q_loss)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """DiffCPS for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    schedule = make_schedule(config.schedule, config.num_steps)
    drawn = partial(draw, schedule, (config.backup_actions,) if config.max_q_backup else ())
    decay, norm = config.decay_updates, config.max_grad_norm
    policy_decay = -(-decay // config.policy_interval)  # the policy's own steps within `decay` updates
    actor_optimiser = clipped_adam(config.actor_learning_rate, norm, policy_decay)
    critic_optimiser = clipped_adam(config.critic_learning_rate, norm, decay)
    multiplier_optimiser = clipped_adam(config.multiplier_learning_rate, norm, policy_decay)

    def init(key: Key) -> State:
        key_actor, key_critic = jax.random.split(key)
        actor = Denoiser(spec, config.width, config.depth, config.time_size, key_actor)
        critic = Critic(spec, (config.width,) * config.depth, key_critic)
        multiplier = jnp.asarray(config.multiplier_init, jnp.float32)
        return State(
            actor=start(actor_optimiser, actor),
            target_actor=actor,
            critic=start(critic_optimiser, critic),
            target_critic=critic,
            multiplier=start(multiplier_optimiser, multiplier),
        )

    def improve_policy(state: State, batch: Transition, draws: Draws) -> tuple[State, Metrics]:
        multiplier = clipped_multiplier(state.multiplier.model, config)
        actor, _, (loss, q_loss), norm = minimise(
            actor_optimiser, state.actor, policy_loss, state.critic.model, multiplier, schedule, batch, draws, config
        )
        # The slope of eq. 18 is kappa - L_c whatever lambda is: it moves the stored one.
        stored, *_ = minimise(multiplier_optimiser, state.multiplier, dual_loss, loss, config.kappa)
        metrics = {"actor/bc_loss": loss, "actor/q_loss": q_loss, "actor/grad_norm": norm}
        return state._replace(actor=actor, multiplier=stored), metrics

    def keep_policy(state: State, batch: Transition, draws: Draws) -> tuple[State, Metrics]:
        return state, dict.fromkeys(("actor/bc_loss", "actor/q_loss", "actor/grad_norm"), jnp.float32(jnp.nan))

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        # --- critics (lines 6-8) ---
        target = critic_target(state.target_actor, state.target_critic, schedule, batch, draws, config)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, target)
        metrics = {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}
        state = state._replace(critic=critic)

        # --- policy and multiplier, every d-th update (lines 9-16) ---
        state, of_policy = index.every(config.policy_interval, improve_policy, keep_policy, state, batch, draws)
        multiplier = clipped_multiplier(state.multiplier.model, config)
        metrics |= of_policy | {"dual/multiplier": multiplier}

        # --- target networks (line 18) ---
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
            "dual/multiplier": clipped_multiplier(state.multiplier.model, config),
            "selection/loss": target_bc,
        }

    return Algorithm(init, (Stage(1, batch, update, draw=drawn, period=config.policy_interval),), act, diagnose)


METRICS = {
    "actor/bc_loss": Metric("Denoising loss $L_c$", "L_c", "log", bound="kappa"),
    "dual/multiplier": Metric("Lagrange multiplier λ", "λ"),
    **CRITIC_METRICS,
    "actor/q_loss": Metric("Q term of the policy's loss, -E[Q] / E|Q|"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "actor/target_bc_loss": Metric("Denoising loss $L_c$ of the target policy", scale="log"),
    "selection/loss": Metric("Denoising loss $L_c$ of the target policy", scale="log"),
}
