"""SfBC: selecting from behaviour candidates (arXiv:2209.14548).

    behaviour  L(theta) = mean (eps - eps_theta(sqrt(abar_i) a + sqrt(1 - abar_i) eps, s, i))^2,   (s, a) ~ data
    value      V(s) = sum_j softmax_j(alpha Q(s, a_j)) Q(s, a_j),   a_j ~ mu_theta(. | s), j = 1..16
    return     R_n = max(r_n + gamma R_{n+1}, V(s_n)),   at first the logged return alone
    critic     L(phi) = E[(R - Q_phi(s, a))^2]
    acting     among 32 actions of mu_theta, by softmax(alpha Q)

Three stages: the behaviour model; the critic on the logged returns; the critic, anew, on returns planned with the
values of the one before. Q and R are in units of the returns' mean and standard deviation throughout.

Where this differs from the authors' program: docs/algorithms/sfbc.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.diffusion.loss import denoising_loss
from diffcps.diffusion.sampler import draw_noise, sample_ancestral
from diffcps.diffusion.schedule import ScheduleName, make_schedule
from diffcps.networks.critic import Critic
from diffcps.networks.denoiser import Denoiser
from diffcps.optim import Trained, clipped_adam, descend, start
from diffcps.rl.replay import draw_rows
from diffcps.rl.returns import lambda_returns, planned_returns
from diffcps.types import Algorithm, Dataset, Key, Metrics, Real, Scalar, Spec, Stage, UpdateIndex, UserError

CITATION = """@inproceedings{chen2023sfbc,
  title = {Offline Reinforcement Learning via High-Fidelity Generative Behavior Modeling},
  author = {Chen, Huayu and Lu, Cheng and Ying, Chengyang and Su, Hang and Zhu, Jun},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  eprint = {2209.14548},
  archivePrefix = {arXiv}
}"""

CHUNK = 256
"""Observations for which candidate actions are drawn at once, while a stage begins."""
STD_FLOOR = 0.1
"""Returns are divided by at least this (authors' program)."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program unless said."""

    num_steps: int = 15
    """Diffusion steps T (authors: 15 steps of DPM-Solver)."""
    schedule: ScheduleName = "vp"
    """Noise schedule beta_i."""
    discount: Real = 0.99
    """Discount gamma."""
    support_actions: int = 16
    """Actions a_j of the behaviour model per logged state, of which V is made."""
    planning_sharpness: Real = 20.0
    """alpha in V: the inverse temperature over the support actions."""
    rounds: int = 2
    """Stages of the critic: the first on logged returns, each further one on planned ones (authors: K = 2)."""
    actor_share: int = 3
    """Updates of the behaviour model, as `critic_share` (authors: 600 epochs of 4e6 samples to 199 of 1e6)."""
    critic_share: int = 1
    """Updates of the critic, all rounds together, in proportion to `actor_share`."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the behaviour model (authors: 1e-4 at their batch of 4,096)."""
    critic_learning_rate: Real = 1e-3
    """Adam's rate for the critic."""
    max_grad_norm: Real = float("inf")
    """Global norm to which gradients are clipped; inf: no clipping (authors' program)."""
    batch_size: int = 256
    """Rows per update (authors: 4,096)."""
    width: int = 256
    """Units per hidden layer, behaviour model and critic."""
    depth: int = 3
    """Hidden layers of the behaviour model."""
    critic_depth: int = 2
    """Hidden layers of the critic (authors: 2; 3 on antmaze-large)."""
    time_size: int = 16
    """Size of the time embedding."""
    num_candidates: int = 32
    """Actions of the behaviour model per observation, when acting."""
    selection_sharpness: Real = 100.0
    """alpha in acting: the inverse temperature of the choice among candidates."""
    averaged_actions: int = 4
    """Candidates drawn without replacement and averaged into the action (authors: 4 on Gym tasks, 1 elsewhere)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[Denoiser]
    """The behaviour model mu_theta."""
    critic: Trained[Critic]
    """One Q network; it predicts (Q - mean) / std of the returns."""
    initial_critic: Critic
    """Where each stage of the critic starts from."""
    return_mean: Scalar
    return_std: Scalar


class Rows(NamedTuple):
    """What one update reads."""

    observation: Float[Array, "b obs"]
    action: Float[Array, "b act"]
    target: Any
    """The return R "b", in units of `return_mean` and `return_std`; nothing while the behaviour model learns."""


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """SfBC for the given sizes. Real-valued fields of `config` may be traced arrays."""
    if config.averaged_actions > config.num_candidates:
        raise UserError(
            f"averaged_actions is {config.averaged_actions}, num_candidates {config.num_candidates}: "
            "no more candidates can be averaged than there are"
        )
    schedule = make_schedule(config.schedule, config.num_steps)
    actor_optimiser = clipped_adam(config.actor_learning_rate, config.max_grad_norm)
    critic_optimiser = clipped_adam(config.critic_learning_rate, config.max_grad_norm)

    def init(key: Key) -> State:
        key_actor, key_critic = jax.random.split(key)
        actor = Denoiser(spec, config.width, config.depth, config.time_size, key_actor)
        critic = Critic(spec, (config.width,) * config.critic_depth, key_critic, jax.nn.silu, size=1)
        return State(
            actor=start(actor_optimiser, actor),
            critic=start(critic_optimiser, critic),
            initial_critic=critic,
            return_mean=jnp.float32(0.0),
            return_std=jnp.float32(1.0),
        )

    # --- the behaviour model ---

    def begin_actor(state: State, dataset: Dataset, key: Key):
        return state, ()

    def batch(dataset: Dataset, key: Key) -> Rows:
        rows = draw_rows(dataset, key, config.batch_size)
        return Rows(rows.observation, rows.action, rows.labels)

    def actor_loss(actor: Denoiser, observation, action, key: Key) -> Scalar:
        """The denoising loss, with i uniform on 0..T-1."""
        key_t, key_eps = jax.random.split(key)
        t = jax.random.randint(key_t, action.shape[:1], 0, config.num_steps)
        eps = jax.random.normal(key_eps, action.shape)
        return denoising_loss(schedule, actor.given(observation, config.num_steps), action, t, eps)

    def update_actor(state: State, batch: Rows, key: Key, index: UpdateIndex) -> tuple[State, Metrics]:
        loss, gradient = jax.value_and_grad(actor_loss)(state.actor.model, batch.observation, batch.action, key)
        actor, norm = descend(actor_optimiser, state.actor, gradient)
        return state._replace(actor=actor), {"actor/bc_loss": loss, "actor/grad_norm": norm}

    def candidates(state: State, observation: Float[Array, "*b obs"], count: int, key: Key):
        """`count` actions of the behaviour model per observation, and their Q: "*b count act" and "*b count"."""
        observation = observation[..., None, :]
        noise = draw_noise(key, schedule, (*observation.shape[:-2], count, spec.action_size))
        action = sample_ancestral(schedule, state.actor.model.given(observation, config.num_steps), noise)
        observation = jnp.broadcast_to(observation, (*action.shape[:-1], spec.observation_size))
        return action, state.critic.model(observation, action)[0]

    # --- the critic ---

    def values(state: State, dataset: Dataset, key: Key) -> Float[Array, " n"]:
        """V(s) = sum_j softmax_j(alpha Q) Q over actions of the behaviour model, in the units of the rewards."""

        def value(row):
            index, observation = row
            _, q = candidates(state, observation, config.support_actions, jax.random.fold_in(key, index))
            return jnp.sum(jax.nn.softmax(config.planning_sharpness * q) * q)

        q = jax.lax.map(value, (jnp.arange(dataset.size), dataset.observation), batch_size=CHUNK)
        return state.return_mean + state.return_std * q

    def begin_on(state: State, returns: Float[Array, " n"]):
        """A new critic for the given returns, which become the rows' labels in units of their mean and deviation."""
        mean, std = jnp.mean(returns), jnp.maximum(jnp.std(returns), STD_FLOOR)
        critic = start(critic_optimiser, state.initial_critic)
        return state._replace(critic=critic, return_mean=mean, return_std=std), (returns - mean) / std

    def begin_with_logged_returns(state: State, dataset: Dataset, key: Key):
        return begin_on(state, lambda_returns(dataset, jnp.zeros(dataset.size), config.discount, 1.0))

    def begin_with_planned_returns(state: State, dataset: Dataset, key: Key):
        return begin_on(state, planned_returns(dataset, values(state, dataset, key), config.discount))

    def critic_loss(critic: Critic, batch: Rows):
        """E[(R - Q(s, a))^2], in units of the returns' standard deviation."""
        q = critic(batch.observation, batch.action)[0]
        return jnp.mean(jnp.square(batch.target - q)), q

    def update_critic(state: State, batch: Rows, key: Key, index: UpdateIndex) -> tuple[State, Metrics]:
        (loss, q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(state.critic.model, batch)
        critic, norm = descend(critic_optimiser, state.critic, gradient)
        q = state.return_mean + state.return_std * jnp.mean(q)
        return state._replace(critic=critic), {"critic/loss": loss, "critic/q": q, "critic/grad_norm": norm}

    # --- the policy ---

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        """The mean of m candidates, drawn without replacement with probability softmax(alpha Q) (Gumbel's top m)."""
        key_candidates, key_choice = jax.random.split(key)
        action, q = candidates(state, observation, config.num_candidates, key_candidates)
        logits = config.selection_sharpness * q
        # No candidate is more than e^40 times as likely as the m-th best, so that m of them can be drawn.
        least = jax.lax.top_k(logits, config.averaged_actions)[0][..., -1:]
        logits = jnp.minimum(logits, least + 40.0)
        chosen = jax.lax.top_k(logits + jax.random.gumbel(key_choice, logits.shape), config.averaged_actions)[1]
        return jnp.mean(jnp.take_along_axis(action, chosen[..., None], axis=-2), axis=-2)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        bc_loss = actor_loss(state.actor.model, rows.observation, rows.action, key)
        q = state.critic.model(rows.observation, rows.action)
        return {
            "actor/bc_loss": bc_loss,
            "critic/q": state.return_mean + state.return_std * jnp.mean(q),
            "selection/loss": bc_loss,
        }

    actor_stage = Stage(config.actor_share, begin_actor, batch, update_actor)
    first = Stage(config.critic_share / config.rounds, begin_with_logged_returns, batch, update_critic)
    further = Stage(config.critic_share / config.rounds, begin_with_planned_returns, batch, update_critic)
    stages = (actor_stage, first, *[further] * (config.rounds - 1))
    return Algorithm(init, batch, update_critic, act, diagnose, stages)
