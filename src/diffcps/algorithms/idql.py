"""IDQL: implicit diffusion Q-learning, a critic of the data's actions and a diffusion clone (arXiv:2304.10573).

    behaviour  L(theta) = E[sum over dimensions of (eps - eps_theta(sqrt(abar_i) a + sqrt(1 - abar_i) eps, s, i))^2]
    value      L(psi)   = E[|tau - 1[u < 0]| u^2],   u = min_k Q_phi'_k(s, a) - V_psi(s)
    critic     L(phi)   = 1/2 sum_j E[(r + gamma V_psi(s') - Q_phi_j(s, a))^2]
    acting     among N actions of mu_theta', by Q or by the weights |tau - 1[Q < V]| of the policy whose value V is

No loss reads an action that is not logged, and none of the three parts waits for the behaviour model: the policy
appears when it acts.

Where this differs from the authors' program: docs/algorithms/idql.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffcps.diffusion.loss import denoising_loss
from diffcps.diffusion.sampler import draw_noise, sample_clipped
from diffcps.diffusion.schedule import Schedule, ScheduleName, make_schedule
from diffcps.networks.critic import Critic, VNetwork
from diffcps.networks.initial import initialised, lecun_normal, xavier_uniform
from diffcps.networks.residual import ResidualDenoiser
from diffcps.optim import Trained, adam_with_decay, clipped_adam, minimise, moving_average, start
from diffcps.rl.bellman import CRITIC_METRICS, mean_critic_loss, td_target
from diffcps.rl.improvement import choose_candidate, repeated
from diffcps.rl.regression import value_loss
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
    UserError,
)

CITATION = """@misc{hansenestruch2023idql,
  title = {IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion Policies},
  author = {Hansen-Estruch, Philippe and Kostrikov, Ilya and Janner, Michael and Kuba, Jakub Grudzien and
            Levine, Sergey},
  year = {2023},
  eprint = {2304.10573},
  archivePrefix = {arXiv}
}"""

Choice = Literal["argmax_q", "implicit", "softmax_q", "sample"]


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program on Gym's tasks."""

    expectile: Real = 0.7
    """tau of the value's loss, above 0 and below 1 (authors' program: 0.9 on AntMaze)."""
    action_choice: Choice = "argmax_q"
    """How to act: the candidate of highest Q (authors' program); one drawn by the implicit weights (the paper), or by
    softmax(Q); or one sample without a look at Q. Q is the smaller of the targets."""
    num_candidates: int = 64
    """Candidates N per observation (authors' program: it evaluates 16, 64 and 256)."""
    candidate_temperature: Real = 1.0
    """Temperature of softmax_q (an addition)."""
    num_steps: int = 5
    """Diffusion steps T (authors' program)."""
    schedule: ScheduleName = "vp"
    """Noise schedule beta_i (authors' program: vp)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target critics follow the critics, every update."""
    ema_rate: Real = 0.001
    """Rate at which the behaviour model that acts follows the trained one, every update (authors' program)."""
    actor_learning_rate: Real = 3e-4
    """AdamW's rate for the behaviour model, at the start of its decay (authors' program)."""
    value_learning_rate: Real = 3e-4
    """Adam's rate for V (authors' program)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (authors' program)."""
    actor_decay_updates: Count = 3_000_000
    """Updates over which the behaviour model's rate alone falls to zero along a cosine; 0 keeps it constant (authors'
    program: as many as it makes)."""
    weight_decay: Real = 1e-4
    """AdamW's decay of all of the behaviour model's parameters (authors' program: Optax's default)."""
    dropout: Real = 0.1
    """Probability of dropping a unit that enters a residual block, in training alone; below 1 (authors' program)."""
    batch_size: int = 512
    """Transitions per update, for all three networks (authors' program)."""
    width: int = 256
    """Units per hidden layer, critics and value."""
    depth: int = 2
    """Hidden layers, critics and value."""
    value_norm: bool = True
    """Whether V normalises its observation (authors' program: yes, since the commit that this follows)."""
    actor_width: int = 256
    """Units between the residual blocks of the behaviour model; inside a block there are four times as many."""
    num_blocks: int = 3
    """Residual blocks."""
    time_size: int = 128
    """Fourier features of the diffusion step: half cosines, half sines (authors' program)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[ResidualDenoiser]
    target_actor: ResidualDenoiser
    value: Trained[VNetwork]
    critic: Trained[Critic]
    target_critic: Critic


class Draws(NamedTuple):
    """All randomness of one update."""

    t: Int[Array, " b"]
    """Diffusion steps, uniform on 0..T-1."""
    eps: Float[Array, "b act"]
    """The noise that is to be predicted."""
    keep: Bool[Array, "blocks b width"]
    """Units that dropout leaves in, for each residual block."""


def draw(config: Config, batch: Transition, key: Key) -> Draws:
    """The random numbers of one update."""
    key_t, key_eps, key_keep = jax.random.split(key, 3)
    size = batch.action.shape[0]
    return Draws(
        t=jax.random.randint(key_t, (size,), 0, config.num_steps),
        eps=jax.random.normal(key_eps, batch.action.shape),
        keep=jax.random.bernoulli(key_keep, 1.0 - config.dropout, (config.num_blocks, size, config.actor_width)),
    )


def behaviour_loss(
    policy: ResidualDenoiser,
    schedule: Schedule,
    batch: Transition,
    t: Int[Array, " b"],
    eps: Float[Array, "b act"],
    kept: Float[Array, "blocks b width"] | None = None,
) -> Scalar:
    """L_d: the squared error of the noise, summed over the dimensions of an action, mean over the batch."""
    denoise = policy.given(batch.observation, schedule.num_steps, kept)
    return batch.action.shape[-1] * denoising_loss(schedule, denoise, batch.action, t, eps)


def critic_target(value: VNetwork, batch: Transition, discount: Real) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) V(s')."""
    return td_target(batch.reward, batch.terminal, value(batch.next_observation), discount)


def implicit_weights(q: Float[Array, "*b k"], v: Float[Array, "*b"], expectile: Real) -> Float[Array, "*b k"]:
    """|tau - 1[Q(s, a) < V(s)]|: the policy proportional to mu(a | s) times this has the value V(s).

    The expectile of Q is where the mean of Q - V under these weights is zero. Reference: IDQL (arXiv:2304.10573), the
    implicit policy of the expectile loss.
    """
    return jnp.where(q < v[..., None], 1.0 - expectile, expectile)


def choose(
    candidates: Float[Array, "*b k act"], q: Float[Array, "*b k"], v: Float[Array, "*b"], config: Config, key: Key
) -> Float[Array, "*b act"]:
    """One candidate, as `config.action_choice` says."""
    if config.action_choice == "implicit":
        logits = jnp.log(implicit_weights(q, v, config.expectile))
        return choose_candidate(candidates, logits, "softmax_q", 1.0, key)
    return choose_candidate(candidates, q, config.action_choice, config.candidate_temperature, key)


def new_actor(spec: Spec, config: Config, key: Key) -> ResidualDenoiser:
    """The behaviour model with the initial weights of the authors' program: Xavier's law, LeCun's in the blocks."""
    key_network, key_outside, key_blocks = jax.random.split(key, 3)
    network = ResidualDenoiser(spec, config.actor_width, config.num_blocks, config.time_size, key_network)
    network = initialised(network, xavier_uniform, key_outside)
    blocks = initialised(network.body.blocks, lecun_normal, key_blocks)
    return eqx.tree_at(lambda network: network.body.blocks, network, blocks)


def new_value(spec: Spec, hidden: tuple[int, ...], normed: bool, key: Key) -> VNetwork:
    """V with the initial weights of the authors' program: Xavier's law."""
    key_network, key_law = jax.random.split(key)
    return initialised(VNetwork(spec, hidden, key_network, normed), xavier_uniform, key_law)


def check(config: Config, spec: Spec) -> None:
    """Raises `UserError` for values that make no sense."""
    if isinstance(config.expectile, float | int) and not 0 < config.expectile < 1:
        raise UserError(f"expectile is {config.expectile:g}: it must be above 0 and below 1")
    if isinstance(config.dropout, float | int) and not 0 <= config.dropout < 1:
        raise UserError(f"dropout is {config.dropout:g}: it must be 0 or more and below 1")
    if config.value_norm and spec.observation_size == 1:
        raise UserError("observations are a single number, which value_norm would make 0: turn value_norm off")


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """IDQL for the given sizes. Real-valued fields of `config` may be traced arrays."""
    check(config, spec)
    batch = partial(sample_transitions, batch_size=config.batch_size)
    schedule = make_schedule(config.schedule, config.num_steps)
    actor_optimiser = adam_with_decay(config.actor_learning_rate, config.weight_decay, config.actor_decay_updates)
    value_optimiser = clipped_adam(config.value_learning_rate, float("inf"))
    critic_optimiser = clipped_adam(config.critic_learning_rate, float("inf"))

    def init(key: Key) -> State:
        key_actor, key_value, key_critic, key_law = jax.random.split(key, 4)
        hidden = (config.width,) * config.depth
        actor = new_actor(spec, config, key_actor)
        value = new_value(spec, hidden, config.value_norm, key_value)
        critic = initialised(Critic(spec, hidden, key_critic, jax.nn.relu), xavier_uniform, key_law)
        return State(
            actor=start(actor_optimiser, actor),
            target_actor=actor,
            value=start(value_optimiser, value),
            critic=start(critic_optimiser, critic),
            target_critic=critic,
        )

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        # --- behaviour model ---
        t, eps, keep = draws
        kept = keep / (1.0 - config.dropout)
        actor, loss, _, norm = minimise(actor_optimiser, state.actor, behaviour_loss, schedule, batch, t, eps, kept)
        metrics = {"actor/bc_loss": loss, "actor/grad_norm": norm}

        # --- value ---
        target_critic = state.target_critic
        value, loss, v, norm = minimise(
            value_optimiser, state.value, value_loss, target_critic, batch, config.expectile
        )
        metrics |= {"value/loss": loss, "value/v": jnp.mean(v), "value/grad_norm": norm}

        # --- critics, from the value after its step ---
        target = critic_target(value.model, batch, config.discount)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, mean_critic_loss, batch, target)
        metrics |= {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}

        # --- target networks ---
        target_actor = moving_average(state.target_actor, actor.model, config.ema_rate)
        target_critic = moving_average(target_critic, critic.model, config.target_rate)
        return State(actor, target_actor, value, critic, target_critic), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        key_noise, key_choice = jax.random.split(key)
        count = 1 if config.action_choice == "sample" else config.num_candidates
        noise = draw_noise(key_noise, schedule, (*observation.shape[:-1], count, spec.action_size))
        denoise = state.target_actor.given(observation[..., None, :], config.num_steps)
        action = sample_clipped(schedule, denoise, noise)
        q = jnp.min(state.target_critic(repeated(observation, count), action), axis=0)
        return choose(action, q, state.value.model(observation), config, key_choice)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        t, eps, _ = draw(config, batch, key)
        value = state.value.model
        loss_of_value, v = value_loss(value, state.target_critic, batch, config.expectile)
        td_error, q = mean_critic_loss(state.critic.model, batch, critic_target(value, batch, config.discount))
        bc, target_bc = (
            behaviour_loss(policy, schedule, batch, t, eps) for policy in (state.actor.model, state.target_actor)
        )
        return {
            "actor/bc_loss": bc,
            "actor/target_bc_loss": target_bc,
            "value/loss": loss_of_value,
            "value/v": jnp.mean(v),
            "critic/td_error": td_error,
            "critic/q": jnp.mean(q),
            "selection/loss": target_bc,
        }

    return Algorithm(init, (Stage(1, batch, update, draw=partial(draw, config)),), act, diagnose)


METRICS = {
    "actor/bc_loss": Metric("Denoising loss $L_d$, a sum over dimensions", "L_d", "log"),
    **CRITIC_METRICS,
    "value/v": Metric("V of the data's observations", "V"),
    "value/loss": Metric("Expectile loss of the value", "value loss", "log"),
    "value/grad_norm": Metric("Norm of the value's gradient", scale="log"),
    "actor/grad_norm": Metric("Norm of the behaviour model's gradient", scale="log"),
    "actor/target_bc_loss": Metric("Denoising loss $L_d$ of the model that acts", scale="log"),
    "selection/loss": Metric("Denoising loss $L_d$ of the model that acts", scale="log"),
}
