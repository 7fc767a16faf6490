"""SRPO: score-regularised policy optimisation, a fast policy held to the data by a diffusion model (arXiv:2310.07297).

    behaviour  L(omega) = E[|eps_omega(alpha_t a + sigma_t z, s, t) - z|^2],   (s, a) ~ data,   t ~ U(1e-3, 1)
    value      L(psi)   = E[|tau - 1[u < 0]| u^2],   u = min_j Q_phi'_j(s, a) - V_psi(s)
    critic     L(phi)   = 1/2 sum_j E[(r + gamma V_psi(s') - Q_phi_j(s, a))^2],   V_psi before its step
    policy     grad     = E[(w(t) eps_omega(a_t, s, t) - beta grad_a Q_phi'(s, a)) da/dtheta],   a = pi_theta(s)
                          a_t = alpha_t a + sigma_t z,   w = sigma_t^2,   Q = mean_j Q_j,   t ~ U(0.02, 0.98)

Three stages: the behaviour model, the critics of IQL, the policy. The policy is one deterministic network; diffusion is
asked while it learns and never when it acts.

Where this differs from the authors' program: docs/algorithms/srpo.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffcps.diffusion.vp_sde import Draws, alpha_and_std, draw_between, perturbed
from diffcps.networks.critic import Critic, VNetwork
from diffcps.networks.gaussian import Deterministic
from diffcps.networks.residual import ContinuousDenoiser, fixed_features, fixed_frequencies
from diffcps.optim import Trained, adam_with_decay, clipped_adam, minimise, moving_average, start
from diffcps.policies.gaussian import squared_error
from diffcps.rl.bellman import CRITIC_METRICS, mean_critic_loss, td_target
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
)

CITATION = """@inproceedings{chen2024srpo,
  title = {Score Regularized Policy Optimization through Diffusion Behavior},
  author = {Chen, Huayu and Lu, Cheng and Wang, Zhengyi and Su, Hang and Zhu, Jun},
  booktitle = {International Conference on Learning Representations},
  year = {2024},
  eprint = {2310.07297},
  archivePrefix = {arXiv}
}"""

BEHAVIOUR_TIMES, POLICY_TIMES = (1e-3, 1.0), (0.02, 0.98)
"""Between which diffusion times are drawn, uniformly, for the behaviour model and for the policy (authors' program)."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program on locomotion tasks."""

    beta: Real = 0.2
    """Weight of Q's gradient beside the behaviour model's: larger values trust Q more (per task in the program)."""
    normalise_guidance: bool = False
    """Divide Q's gradient by its root mean square over the action's dimensions (authors' program: on mazes)."""
    expectile: Real = 0.7
    """tau of the value's loss (authors' program: 0.9 on mazes)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target critics follow the critics, every update of theirs."""
    behaviour_share: int = 200
    """Updates of the behaviour model in proportion to the other shares (authors: 200 epochs of 10,000)."""
    critic_share: int = 150
    """Updates of V and the critics (authors: 150 epochs)."""
    actor_share: int = 100
    """Updates of the policy (authors: 100 epochs)."""
    behaviour_learning_rate: Real = 3e-4
    """AdamW's rate for the behaviour model (authors' program)."""
    value_learning_rate: Real = 3e-4
    """Adam's rate for V (authors' program)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (authors' program)."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the policy at its start (authors' program)."""
    actor_decay_updates: Count = 1_000_000
    """The policy's own updates over which its rate falls to zero along a cosine; 0 keeps it constant (authors'
    program: as many as it makes)."""
    weight_decay: Real = 0.01
    """AdamW's decay of all of the behaviour model's parameters (authors' program: PyTorch's default)."""
    dropout: Real = 0.1
    """Probability of dropping a unit that enters a residual block, while the behaviour model learns (authors')."""
    behaviour_batch_size: int = 2048
    """Rows per update of the behaviour model (authors' program)."""
    batch_size: int = 256
    """Transitions per update of the others (authors' program)."""
    width: int = 256
    """Units per hidden layer of critics, V and policy (authors' program)."""
    depth: int = 2
    """Hidden layers of critics and V (authors' program)."""
    actor_depth: int = 2
    """Hidden layers of the policy (authors' program: 4 on mazes)."""
    behaviour_width: int = 256
    """Units between the residual blocks of the behaviour model; inside a block there are four times as many."""
    num_blocks: int = 3
    """Residual blocks of the behaviour model (authors' program)."""
    num_features: int = 64
    """Fourier features of the diffusion time: half sines, half cosines (authors' program)."""
    time_width: int = 128
    """Units of both layers after the features (authors' program)."""


class State(NamedTuple):
    """What is carried from update to update."""

    behaviour: Trained[ContinuousDenoiser]
    frequency: Float[Array, "*m half"]
    """Of the time features; nothing trains them."""
    value: Trained[VNetwork]
    critic: Trained[Critic]
    target_critic: Critic
    actor: Trained[Deterministic]


class BehaviourDraws(NamedTuple):
    """All randomness of an update of the behaviour model."""

    t: Float[Array, " b"]
    z: Float[Array, "b act"]
    """The noise that is to be predicted."""
    keep: Bool[Array, "blocks b width"]
    """Units that dropout leaves in, for each block."""


def draw_behaviour(config: Config, batch: Transition, key: Key) -> BehaviourDraws:
    """The random numbers of one update of the behaviour model."""
    key_t, key_z, key_keep = jax.random.split(key, 3)
    size = batch.action.shape[0]
    low, high = BEHAVIOUR_TIMES
    return BehaviourDraws(
        t=jax.random.uniform(key_t, (size,), minval=low, maxval=high),
        z=jax.random.normal(key_z, batch.action.shape),
        keep=jax.random.bernoulli(key_keep, 1.0 - config.dropout, (config.num_blocks, size, config.behaviour_width)),
    )


def draw_policy(batch: Transition, key: Key) -> Draws:
    """The random numbers of one update of the policy."""
    return draw_between(POLICY_TIMES, batch.action, key)


def behaviour_loss(
    behaviour: ContinuousDenoiser,
    frequency: Float[Array, " half"],
    batch: Transition,
    t: Float[Array, " b"],
    z: Float[Array, "b act"],
    kept: Float[Array, "blocks b width"] | None = None,
) -> Scalar:
    """E[|eps_omega(alpha_t a + sigma_t z, s, t) - z|^2], the square summed over the dimensions of an action."""
    eps = behaviour(perturbed(batch.action, t, z), batch.observation, fixed_features(t, frequency), kept)
    return jnp.mean(jnp.sum(jnp.square(eps - z), axis=-1))


def q_gradient(
    critic: Critic, observation: Float[Array, "b obs"], action: Float[Array, "b act"], normalise: bool
) -> Float[Array, "b act"]:
    """grad_a mean_j Q_j(s, a), divided by its root mean square over the dimensions where `normalise`."""
    gradient = jax.grad(lambda action: jnp.sum(jnp.mean(critic(observation, action), axis=0)))(action)
    if normalise:
        gradient = gradient / jnp.sqrt(jnp.mean(jnp.square(gradient), axis=-1, keepdims=True))
    return gradient


def policy_loss(
    policy: Deterministic,
    behaviour: ContinuousDenoiser,
    frequency: Float[Array, " half"],
    critic: Critic,
    batch: Transition,
    draws: Draws,
    config: Config,
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    """E[(sigma_t^2 eps_omega(a_t, s, t) - beta grad_a Q(s, a)) a], the bracket held fixed; also both terms' sizes.

    Its value says little: it is made so that its gradient is that of the docstring above.
    """
    action = policy(batch.observation)
    fixed = jax.lax.stop_gradient(action)
    eps = behaviour(perturbed(fixed, draws.t, draws.z), batch.observation, fixed_features(draws.t, frequency))
    pull = jnp.square(alpha_and_std(draws.t)[1])[:, None] * eps
    push = config.beta * q_gradient(critic, batch.observation, fixed, config.normalise_guidance)
    loss = jnp.mean(jnp.sum(jax.lax.stop_gradient(pull - push) * action, axis=-1))
    return loss, (_size(pull), _size(push))


def _size(vector: Float[Array, "b act"]) -> Scalar:
    return jnp.mean(jnp.linalg.norm(vector, axis=-1))


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """SRPO for the given sizes. Real-valued fields of `config` may be traced arrays."""
    unclipped = float("inf")
    behaviour_optimiser = adam_with_decay(config.behaviour_learning_rate, config.weight_decay)
    value_optimiser = clipped_adam(config.value_learning_rate, unclipped)
    critic_optimiser = clipped_adam(config.critic_learning_rate, unclipped)
    actor_optimiser = clipped_adam(config.actor_learning_rate, unclipped, config.actor_decay_updates)

    def init(key: Key) -> State:
        keys = jax.random.split(key, 5)
        hidden = (config.width,) * config.depth
        sizes = (config.behaviour_width, config.num_blocks, config.num_features, config.time_width)
        critic = Critic(spec, hidden, keys[3], jax.nn.relu)
        return State(
            behaviour=start(behaviour_optimiser, ContinuousDenoiser(spec, *sizes, keys[0])),
            frequency=fixed_frequencies(config.num_features, keys[1]),
            value=start(value_optimiser, VNetwork(spec, hidden, keys[2])),
            critic=start(critic_optimiser, critic),
            target_critic=critic,
            actor=start(actor_optimiser, Deterministic(spec, (config.width,) * config.actor_depth, keys[4])),
        )

    def update_behaviour(
        state: State, batch: Transition, draws: BehaviourDraws, index: UpdateIndex
    ) -> tuple[State, Metrics]:
        t, z, keep = draws
        kept = keep / (1.0 - config.dropout)
        behaviour, loss, _, norm = minimise(
            behaviour_optimiser, state.behaviour, behaviour_loss, state.frequency, batch, t, z, kept
        )
        return state._replace(behaviour=behaviour), {"behaviour/loss": loss, "behaviour/grad_norm": norm}

    def update_critics(state: State, batch: Transition, draws: tuple[()], index: UpdateIndex) -> tuple[State, Metrics]:
        next_v = state.value.model(batch.next_observation)
        value, loss, v, norm = minimise(
            value_optimiser, state.value, value_loss, state.target_critic, batch, config.expectile
        )
        metrics = {"value/loss": loss, "value/v": jnp.mean(v), "value/grad_norm": norm}
        target = td_target(batch.reward, batch.terminal, next_v, config.discount)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, mean_critic_loss, batch, target)
        metrics |= {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}
        target_critic = moving_average(state.target_critic, critic.model, config.target_rate)
        return state._replace(value=value, critic=critic, target_critic=target_critic), metrics

    def update_policy(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        of_data = state.behaviour.model, state.frequency, state.target_critic
        actor, loss, (pull, push), norm = minimise(
            actor_optimiser, state.actor, policy_loss, *of_data, batch, draws, config
        )
        metrics = {"actor/loss": loss, "actor/score": pull, "actor/q_gradient": push, "actor/grad_norm": norm}
        return state._replace(actor=actor), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        return state.actor.model(observation)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        t, z, _ = draw_behaviour(config, batch, key)
        next_v = state.value.model(batch.next_observation)
        target = td_target(batch.reward, batch.terminal, next_v, config.discount)
        td_error, q = mean_critic_loss(state.critic.model, batch, target)
        of_value, v = value_loss(state.value.model, state.target_critic, batch, config.expectile)
        error = squared_error(state.actor.model, batch)
        metrics = {"behaviour/loss": behaviour_loss(state.behaviour.model, state.frequency, batch, t, z)}
        metrics |= {"critic/td_error": td_error, "critic/q": jnp.mean(q)}
        return metrics | {
            "value/loss": of_value,
            "value/v": jnp.mean(v),
            "actor/squared_error": error,
            "selection/loss": error,
        }

    many = partial(sample_transitions, batch_size=config.behaviour_batch_size)
    few = partial(sample_transitions, batch_size=config.batch_size)
    stages = (
        Stage(config.behaviour_share, many, update_behaviour, draw=partial(draw_behaviour, config)),
        Stage(config.critic_share, few, update_critics),
        Stage(config.actor_share, few, update_policy, draw=draw_policy),
    )
    return Algorithm(init, stages, act, diagnose)


METRICS = {
    "behaviour/loss": Metric("Denoising loss of the behaviour model", "denoising loss", "log"),
    "value/v": Metric("V of the data's observations", "V"),
    **CRITIC_METRICS,
    "actor/q_gradient": Metric("Size of beta times Q's gradient", "Q's push", "log"),
    "actor/score": Metric("Size of the behaviour model's pull", "score's pull", "log"),
    "actor/loss": Metric("Surrogate loss of the policy"),
    "actor/squared_error": Metric("Squared distance of the policy's actions to the data's", scale="log"),
    "value/loss": Metric("Expectile loss of V", scale="log"),
    "behaviour/grad_norm": Metric("Norm of the behaviour model's gradient", scale="log"),
    "value/grad_norm": Metric("Norm of V's gradient", scale="log"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "selection/loss": Metric("Squared distance of the policy's actions to the data's", scale="log"),
}
