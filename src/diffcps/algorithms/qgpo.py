"""QGPO: Q-guided policy optimisation, a diffusion clone led by an energy of its own at every step (arXiv:2304.12824).

    behaviour  L(theta) = E[|h_theta(alpha_t a + sigma_t z, s, t) + z|^2],   (s, a) ~ data,   t ~ U(1e-3, 1)
    critic     L(phi)   = 1/2 sum_i E[(r + gamma V(s') - Q_phi_i(s, a))^2]
                          V(s') = sum_j softmax_j(alpha_q Q(s', a'_j)) Q(s', a'_j),   a'_j ~ mu_theta(. | s')
    guidance   L(psi)   = -E[sum_j softmax_j(alpha Q(s, a_j)) log softmax_j f_psi(alpha_t a_j + sigma_t z_j, s, t)]
    policy     score    = h_theta / sigma_t + scale grad_a f_psi

Q is the smaller of both target critics. The support actions a_j and a'_j, j = 1..16, are drawn once for every row,
after the behaviour model is trained. The guidance loss (contrastive energy prediction) is least where f is, at every
time t of the diffusion, log E[exp(alpha Q(s, a_0)) | a_t] up to a constant for each s and t: at scale 1 the policy is
then proportional to mu_theta(a | s) exp(alpha Q(s, a)).

Where this differs from the authors' program: docs/algorithms/qgpo.md, "Deviations".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffcps.diffusion.vp_sde import Draws, draw_between, perturbed
from diffcps.networks.critic import Critic
from diffcps.networks.residual import fixed_features, fixed_frequencies
from diffcps.networks.score import EnergyNetwork, ScoreUNet, unet_widths
from diffcps.optim import Trained, clipped_adam, minimise, moving_average, start
from diffcps.policies.score import (
    Chain,
    behaviour_loss,
    denoise_by,
    even_chain,
    features_of,
    sample_actions,
    sample_chain,
)
from diffcps.rl.bellman import CRITIC_METRICS, mean_critic_loss, td_target
from diffcps.rl.improvement import repeated, softmax_value
from diffcps.rl.replay import draw_rows, sample_transitions, transitions
from diffcps.types import (
    Algorithm,
    Dataset,
    Denoise,
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

CITATION = """@inproceedings{lu2023contrastive,
  title = {Contrastive Energy Prediction for Exact Energy-Guided Diffusion Sampling in Offline Reinforcement Learning},
  author = {Lu, Cheng and Chen, Huayu and Chen, Jianfei and Su, Hang and Li, Chongxuan and Zhu, Jun},
  booktitle = {International Conference on Machine Learning},
  year = {2023},
  eprint = {2304.12824},
  archivePrefix = {arXiv}
}"""

TIMES = (1e-3, 1.0)
"""Between which diffusion times are drawn, uniformly, in both losses (authors' program)."""
CHUNK = 256
"""Rows for which support actions are drawn at once."""
DIAGNOSED = 256
"""Rows of a diagnosis for which support actions are drawn."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program on Gym's tasks."""

    alpha: Real = 3.0
    """alpha in the guidance: the inverse temperature of the policy that it stands for (authors' program)."""
    alpha_q: Real = 1.0
    """alpha_q in V: the inverse temperature over the support actions (authors: 1 on their command lines)."""
    guidance_scale: Real = 1.0
    """Factor on the energy's gradient when acting: 1 is the policy of the equations, 0 the clone. The program evaluates
    0, 1, 2, 3, 5, 8 and 10 (AntMaze: 1, 1.5, 2, 2.5, 3 and 4) and chooses none."""
    support_actions: int = 16
    """Actions of the behaviour model for each row's s and s' (authors' program: 32 on AntMaze)."""
    num_steps: int = 15
    """Calls of the networks in a chain of DPM-Solver++ of order 2 (authors' program)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target critics follow the critics, every update of theirs."""
    behaviour_share: int = 600
    """Updates of the behaviour model in proportion to the other shares (authors: 600 epochs of 1,000)."""
    critic_share: int = 500
    """Updates of critics and guidance together (authors: 50 epochs of 10,000)."""
    guidance_share: int = 500
    """Updates of the guidance alone, which follow (authors: another 50 epochs)."""
    behaviour_learning_rate: Real = 1e-4
    """Adam's rate for the behaviour model (authors' program)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics (authors' program)."""
    guidance_learning_rate: Real = 3e-4
    """Adam's rate for the guidance (authors' program)."""
    behaviour_batch_size: int = 4096
    """Rows per update of the behaviour model (authors' program)."""
    batch_size: int = 256
    """Rows per update of critics and guidance (authors' program)."""
    width: int = 256
    """Units per hidden layer of critics and guidance (authors' program)."""
    depth: int = 3
    """Hidden layers of the critics (authors' program)."""
    guidance_depth: int = 4
    """Hidden layers of the guidance (authors' program)."""
    behaviour_width: int = 512
    """Units of the behaviour model's outer blocks (authors' program)."""
    behaviour_depth: int = 3
    """Widths of the behaviour model from outside to inside, each half of the one before; the innermost is also the
    condition's (authors' program: 512, 256, 128)."""
    num_features: int = 32
    """Fourier features of the diffusion time: half sines, half cosines (authors' program)."""


class State(NamedTuple):
    """What is carried from update to update."""

    behaviour: Trained[ScoreUNet]
    """mu_theta."""
    frequency: Float[Array, "*m half"]
    """Of the behaviour model's time features; nothing trains them."""
    critic: Trained[Critic]
    target_critic: Critic
    guidance: Trained[EnergyNetwork]
    """f_psi."""
    guidance_frequency: Float[Array, "*m half"]
    """Of the guidance's time features."""


class Support(NamedTuple):
    """Actions of the behaviour model, the labels of the rows: they are no data, and may lie outside the box."""

    action: Float[Array, "n k act"]
    """For s."""
    next_action: Float[Array, "n k act"]
    """For s'."""


class Supported(NamedTuple):
    """What an update of critics and guidance reads."""

    transition: Transition
    support: Support


def draw_behaviour(batch: Transition, key: Key) -> Draws:
    """The random numbers of one update of the behaviour model, which perturbs the logged actions."""
    return draw_between(TIMES, batch.action, key)


def draw_guidance(batch: Supported, key: Key) -> Draws:
    """The random numbers of one update of the guidance, which perturbs the support actions."""
    return draw_between(TIMES, batch.support.action, key)


def sample_supported(dataset: Dataset, key: Key, batch_size: int) -> Supported:
    """`batch_size` transitions with their support actions, uniformly and with replacement."""
    rows = draw_rows(dataset, key, batch_size)
    return Supported(transitions(rows), rows.labels)


# --- Support actions ---


def support_of(
    behaviour: ScoreUNet,
    frequency: Float[Array, " half"],
    chain: Chain,
    rows: Dataset,
    index: Int[Array, " n"],
    shape: tuple[int, int],
    key: Key,
) -> Support:
    """Support actions of rows, `shape` = (how many, action size), a chunk after the other; a row's draws follow its
    `index`."""

    def of_row(row: tuple[Int[Array, ""], Float[Array, " obs"], Float[Array, " obs"]]) -> Support:
        index, observation, next_observation = row
        noise = jax.random.normal(jax.random.fold_in(key, index), (2, *shape))
        both = jnp.stack([observation, next_observation])
        action, next_action = sample_actions(behaviour, frequency, chain, both, noise)
        return Support(action, next_action)

    return jax.lax.map(of_row, (index, rows.observation, rows.next_observation), batch_size=CHUNK)


def support_as_it_is(state: State, dataset: Dataset, key: Key) -> tuple[State, Support]:
    """Begins a stage with the support actions that were computed for the rows, or that the stage before had."""
    return state, dataset.labels


# --- Critics and guidance ---


def q_of(critic: Critic, observation: Float[Array, "b obs"], action: Float[Array, "b k act"]) -> Float[Array, "b k"]:
    """min_i Q_i(s, a_j)."""
    return jnp.min(critic(repeated(observation, action.shape[1]), action), axis=0)


def critic_target(
    critic: Critic, batch: Transition, next_action: Float[Array, "b k act"], alpha_q: Real, discount: Real
) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) sum_j softmax_j(alpha_q Q(s', a'_j)) Q(s', a'_j)."""
    value = softmax_value(q_of(critic, batch.next_observation, next_action), alpha_q)
    return td_target(batch.reward, batch.terminal, value, discount)


def labels_of(
    critic: Critic, observation: Float[Array, "b obs"], action: Float[Array, "b k act"], alpha: Real
) -> Float[Array, "b k"]:
    """softmax_j(alpha Q(s, a_j)): what the guidance is to predict."""
    return jax.nn.softmax(alpha * q_of(critic, observation, action), axis=-1)


def contrastive_loss(
    guidance: EnergyNetwork,
    frequency: Float[Array, " half"],
    observation: Float[Array, "b obs"],
    action: Float[Array, "b k act"],
    label: Float[Array, "b k"],
    draws: Draws,
) -> Scalar:
    """-E[sum_j label_j log softmax_j f(a_j,t, s, t)], the labels a law over the support actions of a row.

    It is no less than the entropy of the labels, and more where noise makes actions alike.
    """
    t = jnp.broadcast_to(draws.t[:, None], label.shape)
    features = fixed_features(draws.t, frequency)[:, None]
    f = guidance(perturbed(action, t, draws.z), observation[:, None], features)
    return -jnp.mean(jnp.sum(label * jax.nn.log_softmax(f, axis=-1), axis=-1))


def entropy(label: Float[Array, "b k"]) -> Scalar:
    """-E[sum_j label_j log label_j]: log k where Q tells no action from another, 0 where one action is all."""
    return jnp.mean(jnp.sum(jax.scipy.special.entr(label), axis=-1))


# --- The policy ---


Energy = Callable[[Float[Array, "*b act"], Float[Array, "*b obs"], Float[Array, "*#b features"]], Float[Array, "*b"]]
"""f(x_t, s, t), of features of t."""


def energy_gradient(
    guidance: Energy,
    xt: Float[Array, "*b act"],
    observation: Float[Array, "*b obs"],
    features: Float[Array, "*#b features"],
) -> Float[Array, "*b act"]:
    """grad_a f_psi(a, s, t) at a = x_t."""
    return jax.grad(lambda xt: jnp.sum(guidance(xt, observation, features)))(xt)


def guided(
    denoise: Denoise,
    guidance: Energy,
    frequency: Float[Array, " half"],
    chain: Chain,
    observation: Float[Array, "*b obs"],
    scale: Real,
) -> Denoise:
    """eps - sigma_t scale grad_a f_psi: the noise that stands for the score with the gradient added."""
    features, std = features_of(chain, frequency), jnp.asarray(chain.std)

    def guided_denoise(xt: Float[Array, "*b act"], call: Int[Array, ""]) -> Float[Array, "*b act"]:
        at_call = features[call].reshape(*[1] * (xt.ndim - 1), -1)
        return denoise(xt, call) - std[call] * scale * energy_gradient(guidance, xt, observation, at_call)

    return guided_denoise


def new_networks(spec: Spec, config: Config, key: Key) -> tuple[ScoreUNet, Critic, EnergyNetwork]:
    """Behaviour model, critics and guidance, of the sizes of the config."""
    key_behaviour, key_critic, key_guidance = jax.random.split(key, 3)
    widths = unet_widths(config.behaviour_width, config.behaviour_depth)
    return (
        ScoreUNet(spec, widths, config.num_features, widths[-1], key_behaviour),
        Critic(spec, (config.width,) * config.depth, key_critic, jax.nn.relu),
        EnergyNetwork(spec, (config.width,) * config.guidance_depth, config.num_features, key_guidance),
    )


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """QGPO for the given sizes. Real-valued fields of `config` may be traced arrays."""
    unclipped = float("inf")
    behaviour_optimiser = clipped_adam(config.behaviour_learning_rate, unclipped)
    critic_optimiser = clipped_adam(config.critic_learning_rate, unclipped)
    guidance_optimiser = clipped_adam(config.guidance_learning_rate, unclipped)
    chain = even_chain(config.num_steps, 2, "data")
    shape = config.support_actions, spec.action_size

    def init(key: Key) -> State:
        key_networks, *keys = jax.random.split(key, 3)
        behaviour, critic, guidance = new_networks(spec, config, key_networks)
        frequencies = [fixed_frequencies(config.num_features, key) for key in keys]
        return State(
            behaviour=start(behaviour_optimiser, behaviour),
            frequency=frequencies[0],
            critic=start(critic_optimiser, critic),
            target_critic=critic,
            guidance=start(guidance_optimiser, guidance),
            guidance_frequency=frequencies[1],
        )

    def update_behaviour(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        arguments = state.frequency, batch, *draws
        behaviour, loss, _, norm = minimise(behaviour_optimiser, state.behaviour, behaviour_loss, *arguments)
        return state._replace(behaviour=behaviour), {"behaviour/loss": loss, "behaviour/grad_norm": norm}

    def support_of_rows(state: State, rows: Dataset, index: Int[Array, " n"], key: Key) -> Support:
        return support_of(state.behaviour.model, state.frequency, chain, rows, index, shape, key)

    def update_both(state: State, batch: Supported, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        data, support = batch
        target = critic_target(state.target_critic, data, support.next_action, config.alpha_q, config.discount)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, mean_critic_loss, data, target)
        metrics = {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}
        target_critic = moving_average(state.target_critic, critic.model, config.target_rate)
        state = state._replace(critic=critic, target_critic=target_critic)
        state, of_guidance = update_guidance(state, batch, draws, index)  # with the targets after their step
        return state, metrics | of_guidance

    def update_guidance(state: State, batch: Supported, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        data, (action, _) = batch
        label = labels_of(state.target_critic, data.observation, action, config.alpha)
        arguments = state.guidance_frequency, data.observation, action, label, draws
        guidance, loss, _, norm = minimise(guidance_optimiser, state.guidance, contrastive_loss, *arguments)
        metrics = {"guidance/loss": loss, "guidance/entropy": entropy(label), "guidance/grad_norm": norm}
        return state._replace(guidance=guidance), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        denoise = denoise_by(state.behaviour.model, state.frequency, chain, observation)
        guidance = state.guidance.model, state.guidance_frequency
        denoise = guided(denoise, *guidance, chain, observation, config.guidance_scale)
        noise = jax.random.normal(key, (*observation.shape[:-1], spec.action_size))
        return jnp.clip(sample_chain(chain, denoise, noise), -1.0, 1.0)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        key_behaviour, key_support, key_guidance = jax.random.split(key, 3)
        behaviour = state.behaviour.model, state.frequency
        batch = transitions(rows)
        loss = behaviour_loss(*behaviour, batch, *draw_behaviour(batch, key_behaviour))
        few = jax.tree.map(lambda array: array[:DIAGNOSED], rows)
        action, next_action = support_of(*behaviour, chain, few, jnp.arange(few.size), shape, key_support)
        data = transitions(few)
        target = critic_target(state.target_critic, data, next_action, config.alpha_q, config.discount)
        label = labels_of(state.target_critic, data.observation, action, config.alpha)
        of_guidance = state.guidance.model, state.guidance_frequency, data.observation, action, label
        return {
            "behaviour/loss": loss,
            "critic/td_error": mean_critic_loss(state.critic.model, data, target)[0],
            "critic/q": jnp.mean(state.critic.model(rows.observation, rows.action)),
            "guidance/loss": contrastive_loss(*of_guidance, draw_between(TIMES, action, key_guidance)),
            "guidance/entropy": entropy(label),
            "selection/loss": loss,
        }

    supported = partial(sample_supported, batch_size=config.batch_size)
    many = partial(sample_transitions, batch_size=config.behaviour_batch_size)
    stages = (
        Stage(config.behaviour_share, many, update_behaviour, draw=draw_behaviour),
        Stage(
            config.critic_share,
            supported,
            update_both,
            support_as_it_is,
            support_of_rows,
            draw=draw_guidance,
            keep=True,
        ),
        Stage(config.guidance_share, supported, update_guidance, support_as_it_is, draw=draw_guidance, keep=True),
    )
    return Algorithm(init, stages, act, diagnose)


METRICS = {
    "behaviour/loss": Metric("Denoising loss of the behaviour model", "denoising loss", "log"),
    **CRITIC_METRICS,
    "guidance/loss": Metric("Contrastive loss of the guidance", "guidance loss", "log"),
    "guidance/entropy": Metric("Entropy of the guidance's labels", "entropy"),
    "behaviour/grad_norm": Metric("Norm of the behaviour model's gradient", scale="log"),
    "guidance/grad_norm": Metric("Norm of the guidance's gradient", scale="log"),
    "selection/loss": Metric("Denoising loss of the behaviour model", scale="log"),
}
