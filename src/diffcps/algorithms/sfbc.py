"""SfBC: selecting from behaviour candidates (arXiv:2209.14548).

    behaviour  L(theta) = E[|h_theta(alpha_t a + sigma_t z, s, t) + z|^2],   (s, a) ~ data,   t ~ U(1e-5, 1)
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
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffcps.diffusion.vp_sde import Draws, draw_between
from diffcps.networks.critic import Critic
from diffcps.networks.residual import fixed_frequencies
from diffcps.networks.score import ScoreUNet, unet_widths
from diffcps.optim import Trained, clipped_adam, minimise, start
from diffcps.policies.score import Chain, behaviour_loss, even_chain, sample_actions
from diffcps.rl.bellman import critic_loss
from diffcps.rl.improvement import repeated, softmax_value
from diffcps.rl.replay import Labelled, sample_labelled, sample_transitions, transitions
from diffcps.rl.returns import lambda_returns, planned_returns
from diffcps.types import (
    EPISODES,
    Algorithm,
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

CITATION = """@inproceedings{chen2023sfbc,
  title = {Offline Reinforcement Learning via High-Fidelity Generative Behavior Modeling},
  author = {Chen, Huayu and Lu, Cheng and Ying, Chengyang and Su, Hang and Zhu, Jun},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  eprint = {2209.14548},
  archivePrefix = {arXiv}
}"""

TIMES = (1e-5, 1.0)
"""Between which diffusion times are drawn, uniformly (authors' program)."""
SOLVER_ORDER = 3
"""Of DPM-Solver (authors' program)."""
CHUNK = 256
"""Observations for which candidate actions are drawn at once, before a stage begins."""
STD_FLOOR = 0.1
"""Returns are divided by at least this (authors' program)."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program unless said."""

    num_steps: int = 15
    """Calls T of the network in a chain of DPM-Solver of order 3 (authors' program)."""
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
    """Units per hidden layer of the critic (authors' program)."""
    critic_depth: int = 2
    """Hidden layers of the critic (authors: 2; 3 on antmaze-large)."""
    behaviour_width: int = 512
    """Units of the behaviour model's outer blocks (authors' program)."""
    behaviour_depth: int = 3
    """Widths of the behaviour model from outside to inside, each half of the one before; the innermost is also the
    condition's (authors' program: 512, 256, 128)."""
    num_features: int = 32
    """Fourier features of the diffusion time: half sines, half cosines (authors' program)."""
    num_candidates: int = 32
    """Actions of the behaviour model per observation, when acting."""
    selection_sharpness: Real = 100.0
    """alpha in acting: the inverse temperature of the choice among candidates."""
    averaged_actions: int = 4
    """Candidates drawn without replacement and averaged into the action (authors: 4 on Gym tasks, 1 elsewhere)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[ScoreUNet]
    """The behaviour model mu_theta."""
    frequency: Float[Array, "*m half"]
    """Of the time features; nothing trains them."""
    critic: Trained[Critic]
    """One Q network; it predicts (Q - mean) / std of the returns."""
    initial_critic: Critic
    """Where each stage of the critic starts from."""
    return_mean: Scalar
    return_std: Scalar


def draw(batch: Transition, key: Key) -> Draws:
    """The random numbers of one update of the behaviour model, which perturbs the logged actions."""
    return draw_between(TIMES, batch.action, key)


def candidates(
    behaviour: ScoreUNet,
    frequency: Float[Array, " half"],
    critic: Critic,
    chain: Chain,
    observation: Float[Array, "*b obs"],
    count: int,
    key: Key,
) -> tuple[Float[Array, "*b k act"], Float[Array, "*b k"]]:
    """`count` actions of the behaviour model for each observation, not clipped, and Q of them."""
    noise = jax.random.normal(key, (*observation.shape[:-1], count, behaviour.action_size))
    action = sample_actions(behaviour, frequency, chain, observation, noise)
    return action, critic(repeated(observation, count), action)[0]


def values(
    behaviour: ScoreUNet,
    frequency: Float[Array, " half"],
    critic: Critic,
    chain: Chain,
    observation: Float[Array, "n obs"],
    index: Int[Array, " n"],
    config: Config,
    key: Key,
) -> Float[Array, " n"]:
    """V(s) over actions of the behaviour model, in units of the critic's returns; a row's draws follow its `index`."""

    def value(row: tuple[Int[Array, ""], Float[Array, " obs"]]) -> Scalar:
        index, observation = row
        key_row = jax.random.fold_in(key, index)
        _, q = candidates(behaviour, frequency, critic, chain, observation, config.support_actions, key_row)
        return softmax_value(q, config.planning_sharpness)

    return jax.lax.map(value, (index, observation), batch_size=CHUNK)


def mean_of_chosen(
    action: Float[Array, "*b k act"], q: Float[Array, "*b k"], sharpness: Real, count: int, key: Key
) -> Float[Array, "*b act"]:
    """The mean of m candidates, drawn without replacement with probability softmax(alpha Q) (Gumbel's top m)."""
    logits = sharpness * q
    # No candidate is more than e^40 times as likely as the m-th best, so that m of them can be drawn.
    least = jax.lax.top_k(logits, count)[0][..., -1:]
    logits = jnp.minimum(logits, least + 40.0)
    chosen = jax.lax.top_k(logits + jax.random.gumbel(key, logits.shape), count)[1]
    return jnp.mean(jnp.take_along_axis(action, chosen[..., None], axis=-2), axis=-2)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """SfBC for the given sizes. Real-valued fields of `config` may be traced arrays."""
    if config.averaged_actions > config.num_candidates:
        raise UserError(
            f"averaged_actions is {config.averaged_actions}, num_candidates {config.num_candidates}: "
            "no more candidates can be averaged than there are"
        )
    chain = even_chain(config.num_steps, SOLVER_ORDER, "noise")
    actor_optimiser = clipped_adam(config.actor_learning_rate, config.max_grad_norm)
    critic_optimiser = clipped_adam(config.critic_learning_rate, config.max_grad_norm)

    def init(key: Key) -> State:
        key_actor, key_critic, key_frequency = jax.random.split(key, 3)
        widths = unet_widths(config.behaviour_width, config.behaviour_depth)
        actor = ScoreUNet(spec, widths, config.num_features, widths[-1], key_actor)
        critic = Critic(spec, (config.width,) * config.critic_depth, key_critic, jax.nn.silu, size=1)
        return State(
            actor=start(actor_optimiser, actor),
            frequency=fixed_frequencies(config.num_features, key_frequency),
            critic=start(critic_optimiser, critic),
            initial_critic=critic,
            return_mean=jnp.float32(0.0),
            return_std=jnp.float32(1.0),
        )

    # --- the behaviour model ---

    def update_actor(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        arguments = state.frequency, batch, *draws
        actor, loss, _, norm = minimise(actor_optimiser, state.actor, behaviour_loss, *arguments)
        return state._replace(actor=actor), {"actor/bc_loss": loss, "actor/grad_norm": norm}

    # --- the critic ---

    def begin_on(state: State, returns: Float[Array, " n"]) -> tuple[State, Float[Array, " n"]]:
        """A new critic for the given returns, which become the rows' labels in units of their mean and deviation."""
        mean, std = jnp.mean(returns), jnp.maximum(jnp.std(returns), STD_FLOOR)
        critic = start(critic_optimiser, state.initial_critic)
        return state._replace(critic=critic, return_mean=mean, return_std=std), (returns - mean) / std

    def begin_with_logged_returns(state: State, dataset: Dataset, key: Key) -> tuple[State, Float[Array, " n"]]:
        return begin_on(state, lambda_returns(dataset, jnp.zeros(dataset.size), config.discount, 1.0))

    def values_of_rows(state: State, rows: Dataset, index: Int[Array, " n"], key: Key) -> Float[Array, " n"]:
        networks = state.actor.model, state.frequency, state.critic.model
        return values(*networks, chain, rows.observation, index, config, key)

    def begin_with_planned_returns(state: State, dataset: Dataset, key: Key) -> tuple[State, Float[Array, " n"]]:
        value = state.return_mean + state.return_std * dataset.labels
        return begin_on(state, planned_returns(dataset, value, config.discount))

    def update_critic(state: State, batch: Labelled, draws: tuple[()], index: UpdateIndex) -> tuple[State, Metrics]:
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, batch.target)
        q = state.return_mean + state.return_std * jnp.mean(q)
        return state._replace(critic=critic), {"critic/loss": loss, "critic/q": q, "critic/grad_norm": norm}

    # --- the policy ---

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        key_candidates, key_choice = jax.random.split(key)
        networks = state.actor.model, state.frequency, state.critic.model
        action, q = candidates(*networks, chain, observation, config.num_candidates, key_candidates)
        action = mean_of_chosen(action, q, config.selection_sharpness, config.averaged_actions, key_choice)
        return jnp.clip(action, -1.0, 1.0)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        loss = behaviour_loss(state.actor.model, state.frequency, batch, *draw(batch, key))
        q = state.return_mean + state.return_std * jnp.mean(state.critic.model(rows.observation, rows.action))
        return {"actor/bc_loss": loss, "critic/q": q, "selection/loss": loss}

    rows, labelled = (partial(read, batch_size=config.batch_size) for read in (sample_transitions, sample_labelled))
    share = config.critic_share / config.rounds
    behaviour = Stage(config.actor_share, rows, update_actor, draw=draw)
    first = Stage(share, labelled, update_critic, begin_with_logged_returns, keep=True)
    further = Stage(share, labelled, update_critic, begin_with_planned_returns, values_of_rows, keep=True)
    return Algorithm(
        init,
        (behaviour, first, *[further] * (config.rounds - 1)),
        act,
        diagnose,
        needs=EPISODES,
    )


METRICS = {
    "actor/bc_loss": Metric("Denoising loss of the behaviour model", "denoising loss", "log"),
    "critic/q": Metric("Q of the data's actions", "Q"),
    "critic/loss": Metric("Critic loss, in units of the returns' variance", "critic loss", "log"),
    "critic/grad_norm": Metric("Norm of the critic's gradient", scale="log"),
    "actor/grad_norm": Metric("Norm of the behaviour model's gradient", scale="log"),
    "selection/loss": Metric("Denoising loss of the behaviour model", scale="log"),
}
