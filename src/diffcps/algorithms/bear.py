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

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic
from diffcps.networks.squashed import SquashedGaussian
from diffcps.networks.vae import VAE
from diffcps.optim import Trained, clipped_adam, descend, moving_average, start
from diffcps.rl.bellman import clipped_double_q_target, td_loss
from diffcps.rl.divergence import Kernel, mmd, vae_loss
from diffcps.rl.dual import dual_loss, lagrangian
from diffcps.rl.improvement import choose_candidate
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import Algorithm, Dataset, Key, Metrics, Real, Scalar, Spec, Transition, UpdateIndex

CITATION = """@inproceedings{kumar2019bear,
  title = {Stabilizing Off-Policy Q-Learning via Bootstrapping Error Reduction},
  author = {Kumar, Aviral and Fu, Justin and Soh, Matthew and Tucker, George and Levine, Sergey},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019},
  eprint = {1906.00949},
  archivePrefix = {arXiv}
}"""


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
    warm_up_updates: int = 40_000
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
    decay_updates: int = 0
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
    actor: Trained[SquashedGaussian]
    multiplier: Trained[Scalar]


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """BEAR for the given sizes. Real-valued fields of `config` may be traced arrays."""
    vae_optimiser, critic_optimiser, actor_optimiser, multiplier_optimiser = (
        clipped_adam(rate, config.max_grad_norm, config.decay_updates)
        for rate in (
            config.vae_learning_rate,
            config.critic_learning_rate,
            config.actor_learning_rate,
            config.multiplier_learning_rate,
        )
    )

    def clip_multiplier(log_alpha: Scalar) -> Scalar:
        return jnp.clip(log_alpha, jnp.log(config.multiplier_min), jnp.log(config.multiplier_max))

    def init(key: Key) -> State:
        key_vae, key_critic, key_actor = jax.random.split(key, 3)
        critic = Critic(spec, (config.width,) * config.depth, key_critic, jax.nn.relu)
        actor = SquashedGaussian(spec, config.width, config.depth, key_actor)
        log_alpha = clip_multiplier(jnp.log(jnp.asarray(config.multiplier_init, jnp.float32)))
        return State(
            vae=start(vae_optimiser, VAE(spec, config.vae_width, key_vae)),
            critic=start(critic_optimiser, critic),
            target_critic=critic,
            actor=start(actor_optimiser, actor),
            multiplier=start(multiplier_optimiser, log_alpha),
        )

    def batch(dataset: Dataset, key: Key) -> Transition:
        return sample_transitions(dataset, key, config.batch_size)

    def auto_encoding_loss(vae: VAE, batch: Transition, key: Key):
        """Reconstruction of the data's actions, and KL."""
        mean, log_std = vae.encode(batch.observation, batch.action)
        latent = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        reconstruction = vae.decode(batch.observation, latent)
        loss, squared_error, kl = vae_loss(reconstruction, batch.action, mean, log_std, config.kl_weight)
        return loss, (squared_error, kl)

    def sample_pre_tanh(
        actor: SquashedGaussian, observation: Float[Array, "*b obs"], times: int, key: Key
    ) -> Float[Array, "*b times act"]:
        """`times` actions of the policy for each observation, before their tanh."""
        noise = jax.random.normal(key, (*observation.shape[:-1], times, spec.action_size))
        return actor.pre_tanh(observation, noise)

    def repeated(observation: Float[Array, "*b obs"], times: int) -> Float[Array, "*b times obs"]:
        return jnp.repeat(observation[..., None, :], times, axis=-2)

    def critic_target(state: State, batch: Transition, key: Key) -> Float[Array, " b"]:
        """y: target critics, but the policy itself."""
        action = jnp.tanh(sample_pre_tanh(state.actor.model, batch.next_observation, config.backup_actions, key))
        q = state.target_critic(repeated(batch.next_observation, config.backup_actions), action)
        soft = config.min_weight * jnp.min(q, axis=0) + (1.0 - config.min_weight) * jnp.max(q, axis=0)
        best = jnp.max(soft, axis=-1)[None]  # an ensemble of one: the minimum is taken already
        return clipped_double_q_target(batch.reward, batch.terminal, best, config.discount)

    def value_and_divergence(actor: SquashedGaussian, state: State, batch: Transition, key: Key):
        """E[min_k Q_k(s, a)], a the first of the N actions of the policy, and E[MMD] of all N."""
        key_policy, key_latent = jax.random.split(key)
        proposed = sample_pre_tanh(actor, batch.observation, config.mmd_samples, key_policy)
        latent = state.vae.model.draw_latent(key_latent, proposed.shape[:-1], config.latent_bound)
        logged = state.vae.model.decode_pre_tanh(repeated(batch.observation, config.mmd_samples), latent)
        q = jnp.min(state.critic.model(batch.observation, jnp.tanh(proposed[..., 0, :])), axis=0)
        return jnp.mean(q), jnp.mean(mmd(logged, proposed, config.mmd_kernel, config.mmd_sigma))

    def actor_loss(actor: SquashedGaussian, state: State, batch: Transition, key: Key, q_weight: Scalar):
        """-E[min_k Q_k] + alpha (E[MMD] - epsilon), the first term times `q_weight`."""
        q, divergence = value_and_divergence(actor, state, batch, key)
        alpha = jnp.exp(state.multiplier.model)
        return lagrangian(-q_weight * q, alpha, divergence, config.mmd_threshold, 0.0), (q, divergence)

    def multiplier_loss(log_alpha: Scalar, divergence: Scalar) -> Scalar:
        """alpha (epsilon - E[MMD]), as a function of log alpha."""
        return dual_loss(jnp.exp(log_alpha), divergence, config.mmd_threshold)

    def update(state: State, batch: Transition, key: Key, index: UpdateIndex) -> tuple[State, Metrics]:
        key_vae, key_target, key_actor = jax.random.split(key, 3)

        # --- VAE ---
        (loss_vae, (squared_error, kl)), gradient = jax.value_and_grad(auto_encoding_loss, has_aux=True)(
            state.vae.model, batch, key_vae
        )
        vae, vae_norm = descend(vae_optimiser, state.vae, gradient)
        state = state._replace(vae=vae)

        # --- critics ---
        target = critic_target(state, batch, key_target)

        def critic_loss(critic: Critic):
            q = critic(batch.observation, batch.action)
            return td_loss(q, target), q

        (loss, q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(state.critic.model)
        critic, critic_norm = descend(critic_optimiser, state.critic, gradient)
        state = state._replace(critic=critic)

        # --- policy ---
        q_weight = jnp.where(index >= config.warm_up_updates, 1.0, 0.0)
        gradient, (q_policy, divergence) = jax.grad(actor_loss, has_aux=True)(
            state.actor.model, state, batch, key_actor, q_weight
        )
        actor, actor_norm = descend(actor_optimiser, state.actor, gradient)
        state = state._replace(actor=actor)

        # --- multiplier ---
        gradient = jax.grad(multiplier_loss)(state.multiplier.model, divergence)
        multiplier, _ = descend(multiplier_optimiser, state.multiplier, gradient)
        multiplier = dataclasses.replace(multiplier, model=clip_multiplier(multiplier.model))
        state = state._replace(multiplier=multiplier)

        # --- target networks ---
        target_critic = moving_average(state.target_critic, state.critic.model, config.target_rate)
        state = state._replace(target_critic=target_critic)

        return state, {
            "vae/loss": loss_vae,
            "vae/squared_error": squared_error,
            "vae/kl": kl,
            "vae/grad_norm": vae_norm,
            "critic/loss": loss,
            "critic/q": jnp.mean(q),
            "critic/grad_norm": critic_norm,
            "actor/q": q_policy,
            "actor/mmd": divergence,
            "actor/grad_norm": actor_norm,
            "dual/multiplier": jnp.exp(state.multiplier.model),
        }

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        key_noise, key_choice = jax.random.split(key)
        action = jnp.tanh(sample_pre_tanh(state.actor.model, observation, config.num_candidates, key_noise))
        first, _ = state.critic.model.pair(jnp.asarray(True))
        q = first(repeated(observation, config.num_candidates), action)
        return choose_candidate(action, q, "argmax_q", 1.0, key_choice)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        key_vae, key_target, key_actor = jax.random.split(key, 3)
        batch = transitions(rows)
        q = state.critic.model(batch.observation, batch.action)
        loss_vae, (squared_error, kl) = auto_encoding_loss(state.vae.model, batch, key_vae)
        q_policy, divergence = value_and_divergence(state.actor.model, state, batch, key_actor)
        return {
            "vae/loss": loss_vae,
            "vae/squared_error": squared_error,
            "vae/kl": kl,
            "critic/td_error": td_loss(q, critic_target(state, batch, key_target)) / q.shape[0],
            "critic/q": jnp.mean(q),
            "actor/q": q_policy,
            "actor/mmd": divergence,
            "dual/multiplier": jnp.exp(state.multiplier.model),
            "selection/loss": divergence,
        }

    return Algorithm(init, batch, update, act, diagnose)
