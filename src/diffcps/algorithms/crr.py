"""CRR: critic-regularised regression, cloning of the actions that the critic finds good (arXiv:2006.15134).

    critic      L(phi)   = sum_j E[(r + gamma min_k Q_phi'_k(s', a') - Q_phi_j(s, a))^2],   a' ~ pi_theta'(. | s')
    advantage   A(s, a)  = Q(s, a) - mean_i Q(s, a_i)   or   Q(s, a) - max_i Q(s, a_i),
                           a_1..a_m ~ pi_theta(. | s),   Q = mean_j Q_phi_j
    filter      f        = 1[A > 0]   or   min(exp(A / beta), w_max)                                    eqs. 3 and 4
    policy      L(theta) = -E[f log pi_theta(a | s)]

The policy is a Gaussian around a squashed mean; its samples are clipped to the action box. It acts by its critic: of
some samples one is drawn, with probability softmax(Q).

Where this differs from d3rlpy's program and the authors': docs/algorithms/crr.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffcps.networks.critic import Critic
from diffcps.networks.gaussian import ConditionalGaussian
from diffcps.optim import Model, Trained, clipped_adam, minimise, moving_average, moving_average_when, start
from diffcps.policies.gaussian import negative_log_likelihood, weighted_cloning_loss
from diffcps.rl.bellman import CRITIC_METRICS, clipped_double_q_target, critic_loss
from diffcps.rl.improvement import choose_candidate, repeated
from diffcps.rl.regression import exponential_weights
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import Algorithm, Count, Dataset, Key, Metric, Metrics, Real, Spec, Stage, Transition, UpdateIndex

CITATION = """@inproceedings{wang2020crr,
  title = {Critic Regularized Regression},
  author = {Wang, Ziyu and Novikov, Alexander and Zolna, Konrad and Springenberg, Jost Tobias and Reed, Scott and
            Shahriari, Bobak and Siegel, Noah and Merel, Josh and Gulcehre, Caglar and Heess, Nicolas and
            de Freitas, Nando},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020},
  eprint = {2006.15134},
  archivePrefix = {arXiv}
}"""

Filter = Literal["binary", "exp"]
Baseline = Literal["mean", "max"]
Choice = Literal["softmax_q", "argmax_q", "sample", "mean"]


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are what d3rlpy's reproduction of D4RL's table runs.

    Those of Acme, the authors' library, stand beside them.
    """

    filter: Filter = "binary"
    """f: 1[A > 0] (eq. 3), or exp: min(exp(A / beta), w_max) (eq. 4; the default of d3rlpy and Acme)."""
    baseline: Baseline = "mean"
    """What A subtracts from Q(s, a): the mean or the maximum of Q over the policy's actions."""
    num_samples: int = 4
    """m: actions of the policy for each state in the advantage (d3rlpy, Acme)."""
    temperature: Real = 1.0
    """Temperature beta of the exp filter (d3rlpy, Acme)."""
    max_weight: Real = 20.0
    """Largest weight w_max of the exp filter (d3rlpy, Acme)."""
    num_critics: int = 1
    """Q networks; the target takes their minimum, the advantage and acting their mean (d3rlpy, Acme: 1)."""
    target_update: Literal["soft", "hard"] = "soft"
    """Targets follow in every update, or are copied every `target_interval` updates (hard: d3rlpy's default, Acme)."""
    target_rate: Real = 0.005
    """Rate at which soft targets, policy and critic, follow (d3rlpy)."""
    target_interval: int = 100
    """Updates between two copies to hard targets, policy and critic (d3rlpy, Acme)."""
    discount: Real = 0.99
    """Discount gamma."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the policy (d3rlpy, Acme)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critic (d3rlpy, Acme)."""
    max_grad_norm: Real = float("inf")
    """Global norm to which both gradients are clipped; inf: no clipping (d3rlpy)."""
    decay_updates: Count = 0
    """Updates over which both rates fall to zero along a cosine; 0 keeps them constant (d3rlpy)."""
    batch_size: int = 256
    """Transitions per update (d3rlpy's default: 100; Acme's example: 64)."""
    width: int = 256
    """Units per hidden layer, policy and critic (d3rlpy, Acme)."""
    depth: int = 2
    """Hidden layers with ReLU, policy and critic (d3rlpy, Acme)."""
    action_choice: Choice = "softmax_q"
    """One of `num_candidates` samples, drawn with probability softmax(Q) or the best one (argmax_q), or a sample, or
    the mean of the policy (Acme: the mode of the target policy)."""
    num_candidates: int = 4
    """Samples per observation when acting by Q (d3rlpy)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[ConditionalGaussian]
    target_actor: ConditionalGaussian
    """It starts from weights of its own."""
    critic: Trained[Critic]
    target_critic: Critic


class Draws(NamedTuple):
    """All randomness of one update."""

    next_noise: Float[Array, "b act"]
    """Of the target policy's action a' at s'."""
    noise: Float[Array, "b m act"]
    """Of the policy's m actions at s."""


def draw(config: Config, batch: Transition, key: Key) -> Draws:
    """The random numbers of one update."""
    key_target, key_policy = jax.random.split(key)
    size, action_size = batch.action.shape
    return Draws(
        next_noise=jax.random.normal(key_target, (size, action_size)),
        noise=jax.random.normal(key_policy, (size, config.num_samples, action_size)),
    )


def sample_actions(
    policy: ConditionalGaussian, observation: Float[Array, "*b obs"], noise: Float[Array, "*b k act"]
) -> Float[Array, "*b k act"]:
    """Samples of the policy, clipped to the action box."""
    return jnp.clip(policy.sample(observation, noise), -1.0, 1.0)


def q_of(critic: Critic, observation: Float[Array, "*b obs"], action: Float[Array, "*b k act"]) -> Float[Array, "*b k"]:
    """mean_j Q_j(s, a_i) of several actions for each state."""
    return jnp.mean(critic(repeated(observation, action.shape[-2]), action), axis=0)


def critic_target(
    policy: ConditionalGaussian, critic: Critic, batch: Transition, draws: Draws, config: Config
) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) min_k Q_phi'_k(s', a'), a' one action of the target policy."""
    action = sample_actions(policy, batch.next_observation, draws.next_noise[:, None, :])[:, 0]
    q_next = critic(batch.next_observation, action)
    return clipped_double_q_target(batch.reward, batch.terminal, q_next, config.discount)


def advantage(
    policy: ConditionalGaussian, critic: Critic, batch: Transition, draws: Draws, baseline: Baseline
) -> Float[Array, " b"]:
    """A(s, a) = Q(s, a) less the mean or the maximum of Q over m actions of the policy at s."""
    q = q_of(critic, batch.observation, sample_actions(policy, batch.observation, draws.noise))
    value = jnp.max(q, axis=-1) if baseline == "max" else jnp.mean(q, axis=-1)
    return jnp.mean(critic(batch.observation, batch.action), axis=0) - value


def weights(advantage: Float[Array, " b"], config: Config) -> Float[Array, " b"]:
    """f: 1[A > 0], or min(exp(A / beta), w_max)."""
    if config.filter == "binary":
        return jnp.where(advantage > 0.0, 1.0, 0.0)
    return exponential_weights(advantage / config.temperature, config.max_weight)


def following(config: Config, target: Model, new: Model, index: UpdateIndex) -> Model:
    """A target network after an update: an average, or a copy where the index is divisible by the interval."""
    if config.target_update == "soft":
        return moving_average(target, new, config.target_rate)
    copies: Bool[Array, ""] = index.count % config.target_interval == 0
    return moving_average_when(copies, target, new, 1.0)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """CRR for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    decay, norm = config.decay_updates, config.max_grad_norm
    actor_optimiser = clipped_adam(config.actor_learning_rate, norm, decay)
    critic_optimiser = clipped_adam(config.critic_learning_rate, norm, decay)

    def init(key: Key) -> State:
        key_actor, key_target, key_critic = jax.random.split(key, 3)
        hidden = (config.width,) * config.depth
        critic = Critic(spec, hidden, key_critic, jax.nn.relu, config.num_critics)
        return State(
            actor=start(actor_optimiser, ConditionalGaussian(spec, hidden, key_actor)),
            target_actor=ConditionalGaussian(spec, hidden, key_target),
            critic=start(critic_optimiser, critic),
            target_critic=critic,
        )

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        # --- critic ---
        target = critic_target(state.target_actor, state.target_critic, batch, draws, config)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, target)
        metrics = {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}

        # --- policy ---
        gain = advantage(state.actor.model, critic.model, batch, draws, config.baseline)
        weight = weights(gain, config)
        actor, loss, _, norm = minimise(actor_optimiser, state.actor, weighted_cloning_loss, batch, weight)
        metrics |= {"actor/loss": loss, "actor/grad_norm": norm}
        metrics |= {"actor/weight": jnp.mean(weight), "actor/advantage": jnp.mean(gain)}

        # --- target networks ---
        target_actor = following(config, state.target_actor, actor.model, index)
        target_critic = following(config, state.target_critic, critic.model, index)
        return State(actor, target_actor, critic, target_critic), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        policy = state.actor.model
        if config.action_choice == "mean":
            return policy(observation)[0]
        key_noise, key_choice = jax.random.split(key)
        noise = jax.random.normal(key_noise, (*observation.shape[:-1], config.num_candidates, spec.action_size))
        action = sample_actions(policy, observation, noise)
        q = q_of(state.critic.model, observation, action)
        return choose_candidate(action, q, config.action_choice, 1.0, key_choice)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        draws = draw(config, batch, key)
        policy, critic = state.actor.model, state.critic.model
        target = critic_target(state.target_actor, state.target_critic, batch, draws, config)
        loss, q = critic_loss(critic, batch, target)
        gain = advantage(policy, critic, batch, draws, config.baseline)
        nll = negative_log_likelihood(policy, batch)
        metrics = {"critic/td_error": loss / q.shape[0], "critic/q": jnp.mean(q), "actor/advantage": jnp.mean(gain)}
        return metrics | {"actor/weight": jnp.mean(weights(gain, config)), "actor/nll": nll, "selection/loss": nll}

    return Algorithm(init, (Stage(1, batch, update, draw=partial(draw, config)),), act, diagnose)


METRICS = {
    "actor/weight": Metric("Mean weight of the logged actions", "weight"),
    "actor/loss": Metric("Weighted negative log-likelihood", "policy loss"),
    **CRITIC_METRICS,
    "actor/advantage": Metric("Mean advantage of the logged actions", "A"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "actor/nll": Metric("Negative log-likelihood of the data's actions"),
    "selection/loss": Metric("Negative log-likelihood of the data's actions"),
}
