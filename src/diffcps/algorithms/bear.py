"""BEAR: a policy of high Q whose samples stay close, in MMD, to those of a model of the data (arXiv:1906.00949).

    VAE          L(omega) = E[(a - a_hat)^2] + w KL(q(z | s, a) || N(0, I)),   a_hat decoded from z ~ q(. | s, a)
    critic       L(phi)   = sum_j E[(y - Q_phi_j(s, a))^2]
                 y = r + gamma max_i [lambda min_k Q_phi'_k(s', a_i) + (1 - lambda) max_k Q_phi'_k(s', a_i)]
                 a_i ~ pi_theta(. | s')
    policy       L(theta) = -E[min_k Q_phi_k(s, a)] + alpha (E[MMD] - epsilon),   a ~ pi_theta(. | s)
    multiplier   L(log alpha) = alpha (epsilon - E[MMD])

MMD is taken between N actions of the policy and N of the VAE, each before its tanh. In the first updates the policy
descends the MMD alone.

Where this differs from the authors' programs: docs/algorithms/bear.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic
from diffcps.networks.mlp import MLP
from diffcps.networks.squashed import SquashedGaussian
from diffcps.networks.vae import LATENT_SIZES, VAE, draw_latent
from diffcps.optim import Trained, clipped_adam, minimise, moving_average, start
from diffcps.policies.vae import VAE_METRICS, auto_encoding_loss
from diffcps.rl.bellman import CRITIC_METRICS, critic_loss, soft_clipped_target
from diffcps.rl.divergence import Kernel, mmd
from diffcps.rl.dual import dual_loss, lagrangian
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

CITATION = """@inproceedings{kumar2019bear,
  title = {Stabilizing Off-Policy Q-Learning via Bootstrapping Error Reduction},
  author = {Kumar, Aviral and Fu, Justin and Soh, Matthew and Tucker, George and Levine, Sergey},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019},
  eprint = {1906.00949},
  archivePrefix = {arXiv}
}"""

HIDDEN_BIAS = 0.1
"""Initial biases of the hidden layers of policy and critics (D4RL's program)."""
CRITIC_HEAD = 3e-3
"""Bound of the initial weights and bias of a critic's last layer (D4RL's program)."""
POLICY_HEAD = 1e-3
"""Bound of those of the policy's last layer, mean and log-std (D4RL's program)."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of D4RL's evaluations on Hopper and Walker2d."""

    mmd_threshold: Real = 0.05
    """Bound epsilon on the MMD."""
    mmd_kernel: Kernel = "laplacian"
    """Kernel of the MMD (D4RL's evaluations: gaussian on HalfCheetah; original program: either)."""
    mmd_sigma: Real = 20.0
    """Width sigma of the kernel, exp(-distance / (2 sigma)) (original program: 10 laplacian or 20 gaussian)."""
    mmd_samples: int = 4
    """N: actions of the policy, and of the VAE, for each state (original program: 5)."""
    warm_up_updates: Count = 40_000
    """First updates, in which the policy descends the MMD alone (original program: 20 rounds between evaluations)."""
    multiplier_init: Real = 1.0
    """Initial multiplier alpha (original program: the exponential of a standard normal number)."""
    multiplier_min: Real = 6.737947e-3
    """Lower bound of alpha: exp(-5)."""
    multiplier_max: Real = 22026.466
    """Upper bound of alpha: exp(10)."""
    min_weight: Real = 0.75
    """lambda: weight of the smaller of both target Q; the larger one has the rest."""
    backup_actions: int = 10
    """Next actions per state in the target."""
    kl_weight: Real = 0.5
    """Weight of the VAE's KL term, a mean over latent dimensions."""
    latent_bound: Real = 0.5
    """Latents from which the VAE's actions are decoded are clipped to plus and minus this."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target critics follow, every update."""
    vae_learning_rate: Real = 3e-4
    """Adam's rate for the VAE (original program: 1e-3)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (original program: 1e-3)."""
    actor_learning_rate: Real = 1e-4
    """Adam's rate for the policy (original program: 1e-3)."""
    multiplier_learning_rate: Real = 1e-3
    """Adam's rate for log alpha."""
    max_grad_norm: Real = float("inf")
    """Global norm to which each of the four gradients is clipped; inf: no clipping (both programs)."""
    decay_updates: Count = 0
    """Updates over which all four rates fall to zero along a cosine; 0 keeps them constant."""
    batch_size: int = 256
    """Transitions per update (original program: 100)."""
    width: int = 256
    """Units per hidden layer, policy and critics (original program: 400 in the first and 300 in the second)."""
    depth: int = 2
    """Hidden layers, policy and critics."""
    vae_width: int = 750
    """Units in each of the two hidden layers of the VAE's encoder and decoder."""
    num_candidates: int = 100
    """Candidate actions per observation when acting (original program: 10)."""


class State(NamedTuple):
    """What is carried from update to update. The multiplier is stored as log alpha."""

    vae: Trained[VAE]
    critic: Trained[Critic]
    target_critic: Critic
    """It starts from weights of its own."""
    actor: Trained[SquashedGaussian]
    multiplier: Trained[Scalar]


class Draws(NamedTuple):
    """All randomness of one update."""

    noise: Float[Array, "b latent"]
    """Of the latents from which the VAE reconstructs the data's actions."""
    next_noise: Float[Array, "b k act"]
    """Of the actions a_i at s'."""
    policy_noise: Float[Array, "b n act"]
    """Of the policy's N actions at s."""
    latent: Float[Array, "b n latent"]
    """Latents of the VAE's N actions at s."""


def draw(config: Config, batch: Transition, key: Key) -> Draws:
    """The random numbers of one update."""
    key_vae, key_target, key_actor = jax.random.split(key, 3)
    key_policy, key_latent = jax.random.split(key_actor)
    size, action_size = batch.action.shape
    return Draws(
        noise=jax.random.normal(key_vae, (size, LATENT_SIZES * action_size)),
        next_noise=jax.random.normal(key_target, (size, config.backup_actions, action_size)),
        policy_noise=jax.random.normal(key_policy, (size, config.mmd_samples, action_size)),
        latent=draw_latent(key_latent, (size, config.mmd_samples), action_size, config.latent_bound),
    )


def initialised(network: MLP, head: float, key: Key) -> MLP:
    """The network with other initial weights: hidden ones uniform within 1/sqrt(fan_out), hidden biases `HIDDEN_BIAS`.

    Weights and bias of the last layer are uniform within `head`.
    Reference: the networks of D4RL's program, which have this law from rlkit.
    """
    *hidden, last = network.layers
    *keys, key_weight, key_bias = jax.random.split(key, len(hidden) + 2)

    def uniform(key: Key, like: Array, bound: float) -> Array:
        return jax.random.uniform(key, like.shape, minval=-bound, maxval=bound)

    weights = [uniform(key, layer.weight, layer.bias.size**-0.5) for key, layer in zip(keys, hidden, strict=True)]
    biases = [jnp.full_like(layer.bias, HIDDEN_BIAS) for layer in hidden]
    weights.append(uniform(key_weight, last.weight, head))
    biases.append(uniform(key_bias, last.bias, head))
    return eqx.tree_at(
        lambda network: [*(layer.weight for layer in network.layers), *(layer.bias for layer in network.layers)],
        network,
        [*weights, *biases],
    )


def new_critic(spec: Spec, hidden: tuple[int, ...], key: Key) -> Critic:
    """Two Q networks with the initial weights of D4RL's program."""
    key_shape, key_weights = jax.random.split(key)
    critic = Critic(spec, hidden, key_shape, jax.nn.relu)
    networks = jax.vmap(partial(initialised, head=CRITIC_HEAD))(critic.networks, key=jax.random.split(key_weights))
    return eqx.tree_at(lambda critic: critic.networks, critic, networks)


def new_policy(spec: Spec, width: int, depth: int, key: Key) -> SquashedGaussian:
    """A policy with the initial weights of D4RL's program."""
    key_shape, key_weights = jax.random.split(key)
    policy = SquashedGaussian(spec, width, depth, key_shape)
    return eqx.tree_at(lambda policy: policy.network, policy, initialised(policy.network, POLICY_HEAD, key_weights))


def critic_target(
    policy: SquashedGaussian, critic: Critic, batch: Transition, draws: Draws, config: Config
) -> Float[Array, " b"]:
    """y: target critics, but the policy itself."""
    action = jnp.tanh(policy.pre_tanh(batch.next_observation, draws.next_noise))
    q_next = critic(repeated(batch.next_observation, config.backup_actions), action)
    return soft_clipped_target(batch.reward, batch.terminal, q_next, config.min_weight, config.discount)


def value_and_divergence(
    policy: SquashedGaussian, critic: Critic, vae: VAE, batch: Transition, draws: Draws, config: Config
) -> tuple[Scalar, Scalar]:
    """E[min_k Q_k(s, a)], a the first of the N actions of the policy, and E[MMD] of all N."""
    proposed = policy.pre_tanh(batch.observation, draws.policy_noise)
    logged = vae.decode_pre_tanh(repeated(batch.observation, config.mmd_samples), draws.latent)
    q = jnp.min(critic(batch.observation, jnp.tanh(proposed[..., 0, :])), axis=0)
    return jnp.mean(q), jnp.mean(mmd(logged, proposed, config.mmd_kernel, config.mmd_sigma))


def policy_loss(
    policy: SquashedGaussian,
    critic: Critic,
    vae: VAE,
    alpha: Scalar,
    q_weight: Scalar,
    batch: Transition,
    draws: Draws,
    config: Config,
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    """-E[min_k Q_k] + alpha (E[MMD] - epsilon), the first term times `q_weight`; also E[min_k Q_k] and E[MMD]."""
    q, divergence = value_and_divergence(policy, critic, vae, batch, draws, config)
    return lagrangian(-q_weight * q, alpha, divergence, config.mmd_threshold, 0.0), (q, divergence)


def multiplier_loss(log_alpha: Scalar, divergence: Scalar, threshold: Real) -> Scalar:
    """alpha (epsilon - E[MMD]), as a function of log alpha."""
    return dual_loss(jnp.exp(log_alpha), divergence, threshold)


def clipped_multiplier(log_alpha: Scalar, config: Config) -> Scalar:
    """log alpha within its bounds."""
    return jnp.clip(log_alpha, jnp.log(config.multiplier_min), jnp.log(config.multiplier_max))


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """BEAR for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    optimiser = partial(clipped_adam, max_grad_norm=config.max_grad_norm, decay_steps=config.decay_updates)
    vae_optimiser, critic_optimiser = optimiser(config.vae_learning_rate), optimiser(config.critic_learning_rate)
    actor_optimiser = optimiser(config.actor_learning_rate)
    multiplier_optimiser = optimiser(config.multiplier_learning_rate)

    def init(key: Key) -> State:
        key_vae, key_critic, key_target, key_actor = jax.random.split(key, 4)
        hidden = (config.width,) * config.depth
        log_alpha = clipped_multiplier(jnp.log(jnp.asarray(config.multiplier_init, jnp.float32)), config)
        return State(
            vae=start(vae_optimiser, VAE(spec, config.vae_width, key_vae)),
            critic=start(critic_optimiser, new_critic(spec, hidden, key_critic)),
            target_critic=new_critic(spec, hidden, key_target),
            actor=start(actor_optimiser, new_policy(spec, config.width, config.depth, key_actor)),
            multiplier=start(multiplier_optimiser, log_alpha),
        )

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        # --- VAE ---
        vae, loss, (squared_error, kl), norm = minimise(
            vae_optimiser, state.vae, auto_encoding_loss, batch, draws.noise, config.kl_weight
        )
        metrics = {"vae/loss": loss, "vae/squared_error": squared_error, "vae/kl": kl, "vae/grad_norm": norm}

        # --- critics ---
        target = critic_target(state.actor.model, state.target_critic, batch, draws, config)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, target)
        metrics |= {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}

        # --- policy ---
        alpha, q_weight = jnp.exp(state.multiplier.model), jnp.where(index.count >= config.warm_up_updates, 1.0, 0.0)
        fixed = critic.model, vae.model, alpha, q_weight
        actor, _, (q, divergence), norm = minimise(
            actor_optimiser, state.actor, policy_loss, *fixed, batch, draws, config
        )
        metrics |= {"actor/q": q, "actor/mmd": divergence, "actor/grad_norm": norm}

        # --- multiplier ---
        multiplier, *_ = minimise(
            multiplier_optimiser, state.multiplier, multiplier_loss, divergence, config.mmd_threshold
        )
        multiplier = Trained(clipped_multiplier(multiplier.model, config), multiplier.optimiser_state)
        metrics |= {"dual/multiplier": jnp.exp(multiplier.model)}

        # --- target networks ---
        target_critic = moving_average(state.target_critic, critic.model, config.target_rate)
        return State(vae, critic, target_critic, actor, multiplier), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        key_noise, key_choice = jax.random.split(key)
        noise = jax.random.normal(key_noise, (*observation.shape[:-1], config.num_candidates, spec.action_size))
        action = jnp.tanh(state.actor.model.pre_tanh(observation, noise))
        q = state.critic.model.first(repeated(observation, config.num_candidates), action)
        return choose_candidate(action, q, "argmax_q", 1.0, key_choice)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        draws = draw(config, batch, key)
        policy, critic, vae = state.actor.model, state.critic.model, state.vae.model
        vae_loss, (squared_error, kl) = auto_encoding_loss(vae, batch, draws.noise, config.kl_weight)
        target = critic_target(policy, state.target_critic, batch, draws, config)
        loss, q = critic_loss(critic, batch, target)
        policy_q, divergence = value_and_divergence(policy, critic, vae, batch, draws, config)
        return {
            "vae/loss": vae_loss,
            "vae/squared_error": squared_error,
            "vae/kl": kl,
            "critic/td_error": loss / q.shape[0],
            "critic/q": jnp.mean(q),
            "actor/q": policy_q,
            "actor/mmd": divergence,
            "dual/multiplier": jnp.exp(state.multiplier.model),
            "selection/loss": divergence,
        }

    return Algorithm(init, (Stage(1, batch, update, draw=partial(draw, config)),), act, diagnose)


METRICS = {
    "actor/mmd": Metric("MMD between policy and VAE", "MMD", "log", bound="mmd_threshold"),
    "dual/multiplier": Metric("Lagrange multiplier α", "α", "log"),
    **CRITIC_METRICS,
    **VAE_METRICS,
    "actor/q": Metric("Q of the policy's actions"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "selection/loss": Metric("MMD between policy and VAE", scale="log"),
}
