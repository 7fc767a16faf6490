"""CQL: conservative Q-learning, SAC with critics that are pushed down on actions outside the data (arXiv:2006.04779).

    critic       L(phi)   = sum_j { E[(Q_phi_j(s, a) - y)^2] + w E[D_j(s, a)] }                     CQL(H), eqs. 2 and 4
                 y = r + gamma (1 - d) min_k Q_phi'_k(s', a'),   a' ~ pi_theta(. | s')
                 D_j(s, a) = T log sum_i exp(Z_ij / T) - Q_phi_j(s, a),   Z_ij = Q_phi_j(s, a_i) - log q_i(a_i)
    policy       L(theta) = E[alpha log pi_theta(a | s) - min_k Q_phi_k(s, a)],   a ~ pi_theta(. | s)
    temperature  L(log alpha) = -log alpha E[log pi_theta(a | s) + H]
    multiplier   L(nu)    = -1/2 sum_j alpha' w (E[D_j] - gap),   alpha' = exp(nu), a factor on w (E[D_j] - gap)

The a_i are uniform actions, actions of pi_theta(. | s) and actions of pi_theta(. | s'), as many of each, and log q_i
their log-densities. Multiplier and gap are there in the Lagrange form alone. Every loss of an update reads the networks
as they were before it.

Where this differs from CORL's program and the authors': docs/algorithms/cql.md, "Deviations".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic
from diffcps.networks.initial import initialised, orthogonal, xavier_uniform
from diffcps.networks.squashed import ScaledSquashedGaussian
from diffcps.optim import Trained, clipped_adam, minimise, moving_average, start
from diffcps.rl.bellman import CRITIC_METRICS, td_loss, td_target
from diffcps.rl.improvement import repeated
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

CITATION = """@inproceedings{kumar2020cql,
  title = {Conservative {Q}-Learning for Offline Reinforcement Learning},
  author = {Kumar, Aviral and Zhou, Aurick and Tucker, George and Levine, Sergey},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020},
  eprint = {2006.04779},
  archivePrefix = {arXiv}
}"""

HEAD_GAIN = 0.01
"""Gain of the initial weights of the last layers: orthogonal in critics, Xavier's in the policy (CORL)."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of CORL's program on locomotion."""

    conservative_weight: Real = 10.0
    """Weight w of the conservative term (CORL: 5 on AntMaze; authors' program: 5 or 10)."""
    num_actions: int = 10
    """Actions of each of the three kinds in the conservative term (CORL, authors' program)."""
    importance_sampling: bool = True
    """Subtract log-densities in the log-sum-exp; without, Q of the data's action is among the summands (CORL: yes)."""
    softmax_temperature: Real = 1.0
    """Temperature T of the log-sum-exp (CORL, authors' program)."""
    difference_floor: Real = float("inf")
    """D of each state is cut from below at minus this; inf: no cut (CORL: 200 on AntMaze)."""
    lagrange: bool = False
    """Learn a multiplier alpha' that holds E[D] at `gap` (CORL: on AntMaze)."""
    gap: Real = 0.8
    """Bound on E[D] in the Lagrange form (CORL: 0.8 on AntMaze; authors' program: 5 on AntMaze)."""
    multiplier_init: Real = math.e
    """Initial multiplier alpha' (CORL: nu = 1; authors' program: nu = 0)."""
    multiplier_max: Real = 1e6
    """Upper bound of alpha', at which it stays (CORL)."""
    max_q_backup: bool = False
    """Back up the best of `backup_actions` next actions by the smaller of both target Q (CORL: on AntMaze)."""
    backup_actions: int = 10
    """Next actions per state in the max-Q backup (CORL)."""
    entropy_per_dimension: Real = 1.0
    """The policy's entropy is held at minus this for each action dimension: H = -|A| (CORL, authors' program)."""
    temperature_init: Real = 1.0
    """Initial temperature alpha (CORL)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target critics follow, every update (CORL, authors' program)."""
    actor_learning_rate: Real = 3e-5
    """Adam's rate for the policy (CORL: 1e-4 on AntMaze; authors' program: 1e-4)."""
    temperature_learning_rate: Real = 3e-5
    """Adam's rate for log alpha; the programs have the policy's."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (CORL, authors' program)."""
    multiplier_learning_rate: Real = 3e-4
    """Adam's rate for nu; the programs have the critics'."""
    max_grad_norm: Real = float("inf")
    """Global norm to which each gradient is clipped; inf: no clipping (CORL)."""
    decay_updates: Count = 0
    """Updates over which all rates fall to zero along a cosine; 0 keeps them constant (CORL)."""
    batch_size: int = 256
    """Transitions per update (CORL, authors' program)."""
    width: int = 256
    """Units per hidden layer, policy and critics (CORL, authors' program)."""
    depth: int = 3
    """Hidden layers of the policy, with ReLU (CORL, authors' program)."""
    critic_depth: int = 3
    """Hidden layers of both critics, with ReLU (authors' program: 3; CORL on AntMaze: 5 and 3)."""


class State(NamedTuple):
    """What is carried from update to update. Temperature and multiplier are stored as log alpha and nu."""

    actor: Trained[ScaledSquashedGaussian]
    critic: Trained[Critic]
    target_critic: Critic
    temperature: Trained[Scalar]
    multiplier: Trained[Scalar]


class Draws(NamedTuple):
    """All randomness of one update."""

    noise: Float[Array, "b 1 act"]
    """Of the policy's action at s, for the losses of policy and temperature."""
    next_noise: Float[Array, "b k act"]
    """Of the actions a' at s' in the target; one without the max-Q backup."""
    uniform: Float[Array, "b n act"]
    """The uniform actions of the conservative term."""
    following_noise: Float[Array, "b n act"]
    """Of its actions at s'."""
    current_noise: Float[Array, "b n act"]
    """Of its actions at s."""


class Proposals(NamedTuple):
    """Actions for each state, on which the critics are pushed down, with the log-densities that drew them."""

    action: Float[Array, "b m act"]
    log_density: Float[Array, "b m"]


def draw(config: Config, batch: Transition, key: Key) -> Draws:
    """The random numbers of one update."""
    key_policy, key_target, key_uniform, key_following, key_current = jax.random.split(key, 5)
    size, action_size = batch.action.shape
    several = (size, config.num_actions, action_size)
    backup = config.backup_actions if config.max_q_backup else 1
    return Draws(
        noise=jax.random.normal(key_policy, (size, 1, action_size)),
        next_noise=jax.random.normal(key_target, (size, backup, action_size)),
        uniform=jax.random.uniform(key_uniform, several, minval=-1.0, maxval=1.0),
        following_noise=jax.random.normal(key_following, several),
        current_noise=jax.random.normal(key_current, several),
    )


def new_critic(spec: Spec, hidden: tuple[int, ...], key: Key) -> Critic:
    """Two Q networks with CORL's initial weights: orthogonal ones, small in the last layer, and biases 0."""
    key_shape, key_law = jax.random.split(key)
    critic = initialised(Critic(spec, hidden, key_shape, jax.nn.relu), orthogonal, key_law)
    return eqx.tree_at(
        lambda critic: critic.networks.layers[-1].weight,
        critic,
        replace_fn=lambda weight: HEAD_GAIN / 2.0**0.5 * weight,
    )


def new_policy(spec: Spec, hidden: tuple[int, ...], key: Key) -> ScaledSquashedGaussian:
    """A policy with CORL's initial weights: PyTorch's, but a last layer by Xavier's law, small, and its bias 0."""
    key_shape, key_law = jax.random.split(key)
    policy = ScaledSquashedGaussian(spec, hidden, key_shape)
    head = initialised(policy.network.layers[-1], xavier_uniform, key_law)
    head = eqx.tree_at(lambda layer: layer.weight, head, replace_fn=lambda weight: HEAD_GAIN * weight)
    return eqx.tree_at(lambda policy: policy.network.layers[-1], policy, head)


def critic_target(
    policy: ScaledSquashedGaussian, critic: Critic, batch: Transition, draws: Draws, discount: Real
) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) max_i min_k Q_phi'_k(s', a'_i): target critics, but the policy itself; no entropy in it."""
    action, _ = policy.sample(batch.next_observation, draws.next_noise)
    q_next = critic(repeated(batch.next_observation, action.shape[1]), action)
    return td_target(batch.reward, batch.terminal, jnp.max(jnp.min(q_next, axis=0), axis=-1), discount)


def propose(policy: ScaledSquashedGaussian, batch: Transition, draws: Draws) -> Proposals:
    """Uniform actions, then the policy's at s', then at s, with their log-densities; under stop-gradient."""
    following, log_following = policy.sample(batch.next_observation, draws.following_noise)
    current, log_current = policy.sample(batch.observation, draws.current_noise)
    log_uniform = jnp.full_like(log_current, draws.uniform.shape[-1] * math.log(0.5))
    action = jnp.concatenate([draws.uniform, following, current], axis=1)
    log_density = jnp.concatenate([log_uniform, log_following, log_current], axis=1)
    return jax.lax.stop_gradient(Proposals(action, log_density))


def summands(
    critic: Critic, q: Float[Array, "n b"], batch: Transition, proposals: Proposals, importance_sampling: bool
) -> Float[Array, "n b _"]:
    """Z_ij = Q_j(s, a_i) - log q_i(a_i), every action at s; without importance sampling, Q_j(s, a_i) and Q_j(s, a)."""
    z = critic(repeated(batch.observation, proposals.action.shape[1]), proposals.action)
    return z - proposals.log_density if importance_sampling else jnp.append(z, q[..., None], axis=-1)


def differences(z: Float[Array, "n b _"], q: Float[Array, "n b"], temperature: Real, floor: Real) -> Float[Array, " n"]:
    """E[D_j]: T log sum_i exp(Z_ij / T) - Q_j(s, a), at least -`floor` in each state, then the mean over the states."""
    soft_maximum = temperature * jax.nn.logsumexp(z / temperature, axis=-1)
    return jnp.mean(jnp.maximum(soft_maximum - q, -floor), axis=-1)


def overestimation(
    critic: Critic, q: Float[Array, "n b"], batch: Transition, proposals: Proposals, config: Config
) -> Float[Array, " n"]:
    """E[D_j] of the critics, Q_j(s, a) given."""
    z = summands(critic, q, batch, proposals, config.importance_sampling)
    return differences(z, q, config.softmax_temperature, config.difference_floor)


def conservative_loss(
    critic: Critic,
    batch: Transition,
    target: Float[Array, " b"],
    proposals: Proposals,
    multiplier: Scalar,
    gap: Real,
    config: Config,
) -> tuple[Scalar, tuple[Scalar, Float[Array, "n b"], Float[Array, " n"]]]:
    """sum_j {mean (Q_j(s, a) - y)^2 + alpha' w (E[D_j] - gap)}; also the first sum, each Q_j(s, a), and E[D_j]."""
    q = critic(batch.observation, batch.action)
    squared_error, difference = td_loss(q, target), overestimation(critic, q, batch, proposals, config)
    penalty = jnp.sum(multiplier * config.conservative_weight * (difference - gap))
    return squared_error + penalty, (squared_error, q, difference)


def policy_loss(
    policy: ScaledSquashedGaussian, critic: Critic, alpha: Scalar, batch: Transition, draws: Draws
) -> tuple[Scalar, tuple[Float[Array, " b"], Float[Array, " b"]]]:
    """mean (alpha log pi(a | s) - min_k Q_k(s, a)), a one action of the policy; also log pi and min_k Q_k."""
    action, log_prob = (part[:, 0] for part in policy.sample(batch.observation, draws.noise))
    q = jnp.min(critic(batch.observation, action), axis=0)
    return jnp.mean(alpha * log_prob - q), (log_prob, q)


def temperature_loss(log_alpha: Scalar, log_prob: Float[Array, " b"], target_entropy: Real) -> Scalar:
    """-log alpha mean (log pi + H)."""
    return -jnp.mean(log_alpha * (log_prob + target_entropy))


def multiplier_of(nu: Scalar, config: Config) -> Scalar:
    """alpha' = exp(nu), at most `multiplier_max`, where it has no gradient; 1 where there is no Lagrange multiplier."""
    return jnp.clip(jnp.exp(nu), 0.0, config.multiplier_max) if config.lagrange else jnp.ones_like(nu)


def multiplier_loss(nu: Scalar, difference: Float[Array, " n"], config: Config) -> Scalar:
    """-1/2 sum_j alpha' w (E[D_j] - gap)."""
    return -0.5 * jnp.sum(multiplier_of(nu, config) * config.conservative_weight * (difference - config.gap))


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """CQL for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    optimiser = partial(clipped_adam, max_grad_norm=config.max_grad_norm, decay_steps=config.decay_updates)
    actor_optimiser, critic_optimiser = optimiser(config.actor_learning_rate), optimiser(config.critic_learning_rate)
    temperature_optimiser = optimiser(config.temperature_learning_rate)
    multiplier_optimiser = optimiser(config.multiplier_learning_rate)
    target_entropy = -config.entropy_per_dimension * spec.action_size
    gap = config.gap if config.lagrange else 0.0

    def init(key: Key) -> State:
        key_actor, key_critic = jax.random.split(key)
        critic = new_critic(spec, (config.width,) * config.critic_depth, key_critic)
        scalars = (jnp.log(jnp.asarray(x, jnp.float32)) for x in (config.temperature_init, config.multiplier_init))
        log_alpha, nu = scalars
        return State(
            actor=start(actor_optimiser, new_policy(spec, (config.width,) * config.depth, key_actor)),
            critic=start(critic_optimiser, critic),
            target_critic=critic,
            temperature=start(temperature_optimiser, log_alpha),
            multiplier=start(multiplier_optimiser, nu),
        )

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        policy, critic = state.actor.model, state.critic.model  # every loss reads them as they are here
        alpha, multiplier = jnp.exp(state.temperature.model), multiplier_of(state.multiplier.model, config)

        # --- policy and temperature ---
        actor, loss, (log_prob, q), norm = minimise(
            actor_optimiser, state.actor, policy_loss, critic, alpha, batch, draws
        )
        metrics = {"actor/loss": loss, "actor/q": jnp.mean(q), "actor/grad_norm": norm}
        metrics |= {"actor/entropy": -jnp.mean(log_prob), "actor/temperature": alpha}
        temperature, *_ = minimise(temperature_optimiser, state.temperature, temperature_loss, log_prob, target_entropy)

        # --- critics and multiplier ---
        target = critic_target(policy, state.target_critic, batch, draws, config.discount)
        fixed = batch, target, propose(policy, batch, draws), multiplier, gap
        trained, _, (loss, q, difference), norm = minimise(
            critic_optimiser, state.critic, conservative_loss, *fixed, config
        )
        metrics |= {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}
        metrics |= {"critic/difference": jnp.mean(difference), "dual/multiplier": multiplier}
        nu = state.multiplier
        if config.lagrange:
            nu, *_ = minimise(multiplier_optimiser, nu, multiplier_loss, difference, config)

        # --- target critics ---
        target_critic = moving_average(state.target_critic, trained.model, config.target_rate)
        return State(actor, trained, target_critic, temperature, nu), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        return state.actor.model.mode(observation)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        draws, policy, critic = draw(config, batch, key), state.actor.model, state.critic.model
        target = critic_target(policy, state.target_critic, batch, draws, config.discount)
        q = critic(batch.observation, batch.action)
        difference = overestimation(critic, q, batch, propose(policy, batch, draws), config)
        _, (log_prob, policy_q) = policy_loss(policy, critic, jnp.exp(state.temperature.model), batch, draws)
        bc = jnp.mean(jnp.square(policy.mode(batch.observation) - batch.action))
        return {
            "critic/td_error": td_loss(q, target) / q.shape[0],
            "critic/q": jnp.mean(q),
            "critic/difference": jnp.mean(difference),
            "actor/q": jnp.mean(policy_q),
            "actor/entropy": -jnp.mean(log_prob),
            "actor/bc_loss": bc,
            "selection/loss": bc,
        }

    return Algorithm(init, (Stage(1, batch, update, draw=partial(draw, config)),), act, diagnose)


METRICS = {
    "critic/difference": Metric("Difference $E[D]$ of the conservative term", "E[D]"),
    "dual/multiplier": Metric("Lagrange multiplier α'", "α'", "log"),
    **CRITIC_METRICS,
    "actor/entropy": Metric("Entropy of the policy", "entropy"),
    "actor/temperature": Metric("Temperature α of the entropy", scale="log"),
    "actor/q": Metric("Q of the policy's actions"),
    "actor/loss": Metric("Policy loss"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "actor/bc_loss": Metric("Squared error of the policy's mode", scale="log"),
    "selection/loss": Metric("Squared error of the policy's mode", scale="log"),
}
