"""EDP: efficient diffusion policies, improved through one denoising step instead of a whole chain (arXiv:2305.20081).

    one step  a_0(theta) = clip(a_i / sqrt(abar_i) - sqrt(1 / abar_i - 1) eps_theta(a_i, s, i)),   a_i a noisy logged a
    policy    L(theta)   = L_d(theta) + L_g(theta), L_d the denoising loss at the same a_i, and L_g one of
      td3     -alpha E[Q_phi_j(s, a_0)] / E|Q_phi_j(s, a_0)|,   j by a fair coin
      iql     -E[w log N(a; a_0, I)],   w = min(exp(beta (min_k Q_phi'_k(s, a) - V_psi(s))), w_max)
      crr     -E[w log N(a; a_0, I)],   w = min(exp(A / T), w_max),   A = Q(s, a) - mean_j Q(s, a_j),
                                        Q = min_k Q_phi_k,   a_1..a_m ~ N(a_0, I)
    critic    L(phi)     = sum_j E[(y - Q_phi_j(s, a))^2]
      td3     y = r + gamma min_k Q_phi'_k(s', a'),   a' ~ pi_theta'(. | s') by a whole chain, without gradient; so crr
      iql     y = r + gamma V_psi(s'),   V_psi the expectile of min_k Q_phi'_k(s, a), as in IQL (arXiv:2110.06169)

Policy and critics step at once, both from the networks as they were; V steps before them.

Where this differs from the authors' program: docs/algorithms/edp.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffcps.diffusion.dpm_solver import dpm_solver, sample_dpm, solver_orders
from diffcps.diffusion.process import add_noise, clip_noise, predict_x0
from diffcps.diffusion.schedule import Schedule, ScheduleName, log_alpha_between, make_schedule
from diffcps.networks.critic import Critic, VNetwork
from diffcps.networks.denoiser import Denoiser
from diffcps.networks.gaussian import log_density
from diffcps.networks.initial import initialised, lecun_normal
from diffcps.networks.mlp import mish
from diffcps.optim import Trained, clipped_adam, each_alone, minimise, moving_average, moving_average_when, start
from diffcps.policies.diffusion import sample_action
from diffcps.rl.bellman import (
    CRITIC_METRICS,
    clipped_double_q_target,
    critic_loss,
    max_over_candidates,
    td_target,
)
from diffcps.rl.improvement import ActionChoice, choose_candidate, normalised_q_loss, repeated
from diffcps.rl.regression import exponential_weights, value_loss
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

CITATION = """@inproceedings{kang2023edp,
  title = {Efficient Diffusion Policies for Offline Reinforcement Learning},
  author = {Kang, Bingyi and Ma, Xiao and Du, Chao and Pang, Tianyu and Yan, Shuicheng},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023},
  eprint = {2305.20081},
  archivePrefix = {arXiv}
}"""

Improvement = Literal["td3", "iql", "crr"]
ChainName = Literal["ddpm", "dpm"]
SOLVER_ORDER = 3
"""Of DPM-Solver (authors' program)."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program."""

    improvement: Improvement = "td3"
    """What improves the policy: L_g, and the critics' target that goes with it (authors' program: TD3)."""
    q_weight: Real = 2.0
    """Weight alpha of the Q term of td3 (authors' program, on every task)."""
    expectile: Real = 0.7
    """Expectile of V among the logged actions' Q, for iql (authors' program)."""
    iql_inverse_temperature: Real = 3.0
    """beta of the weights of iql (authors' program)."""
    iql_max_weight: Real = 100.0
    """Largest weight w_max of iql (authors' program)."""
    crr_temperature: Real = 1.0
    """Temperature T of the weights of crr (authors' program)."""
    crr_max_weight: Real = 20.0
    """Largest weight w_max of crr (authors' program)."""
    crr_samples: int = 10
    """m: actions around a_0 for each state in the advantage of crr (authors' program)."""
    max_q_backup: bool = False
    """Back up the best of `backup_actions` next actions for each Q, where y reads any (authors' program: no)."""
    backup_actions: int = 10
    """Next actions per state in the max-Q backup (authors' program)."""
    num_steps: int = 100
    """Diffusion steps T (authors' program: 100; 1,000 with `sampler` = dpm)."""
    schedule: ScheduleName = "linear_rate"
    """Noise schedule beta_i (authors' program: linear_rate, from 0.1 / T to 20 / T)."""
    sampler: ChainName = "ddpm"
    """How actions are drawn: by all T steps (ddpm), or by DPM-Solver in `solver_calls` calls (dpm)."""
    solver_calls: int = 15
    """Calls of the network in a chain of DPM-Solver (authors' program)."""
    discount: Real = 0.99
    """Discount gamma."""
    target_rate: Real = 0.005
    """Rate at which the target critics follow the critics, every update."""
    ema_rate: Real = 0.005
    """Rate at which the target policy follows the policy, every `ema_every` updates (authors' program)."""
    ema_every: int = 5
    """Updates between two moves of the target policy (authors' program)."""
    ema_start: Count = 1000
    """Updates during which the target policy stays the initial network (authors' program)."""
    actor_learning_rate: Real = 3e-4
    """Adam's rate for the policy (authors' program: 3e-4 on every task, for all networks)."""
    critic_learning_rate: Real = 3e-4
    """Adam's rate for the critics."""
    value_learning_rate: Real = 3e-4
    """Adam's rate for V, for iql."""
    max_grad_norm: Real = 9.0
    """Norm to which each network's own gradient is clipped (authors' program, per task); inf: no clipping."""
    batch_size: int = 256
    """Transitions per update."""
    width: int = 256
    """Units per hidden layer, all networks."""
    depth: int = 3
    """Hidden layers with Mish, all networks."""
    time_size: int = 16
    """Size of the time embedding (authors' program)."""
    action_choice: ActionChoice = "softmax_q"
    """How to act: sample an action, or draw (softmax_q) or pick (argmax_q) among candidates by min Q of the critics."""
    num_candidates: int = 50
    """Candidate actions per observation when acting by Q (authors' program)."""
    candidate_temperature: Real = 1.0
    """Temperature of softmax_q (authors' program)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[Denoiser]
    target_actor: Denoiser
    critic: Trained[Critic]
    target_critic: Critic
    value: Trained[VNetwork] | None
    """Of iql alone."""


class Draws(NamedTuple):
    """All randomness of one update. Of what the improvement does not read there are no samples: k or m is 0."""

    t: Int[Array, " b"]
    """Diffusion steps, uniform on 0..T-1."""
    eps: Float[Array, "b act"]
    """The noise that is to be predicted."""
    next_noise: Float[Array, "rows b k act"]
    """Chains of the target policy's actions a' at s'; one each without the max-Q backup."""
    maximise_first: Bool[Array, ""]
    """The coin of td3: which Q is maximised."""
    sample_noise: Float[Array, "b m act"]
    """Of the actions around a_0 in the advantage of crr."""


def draw_chain(config: Config, key: Key, shape: tuple[int, ...]) -> Float[Array, "rows *b act"]:
    """All noise of one chain: its start, and with ddpm a row more for each step but the last."""
    return jax.random.normal(key, (config.num_steps if config.sampler == "ddpm" else 1, *shape))


def draw(config: Config, batch: Transition, key: Key) -> Draws:
    """The random numbers of one update."""
    key_t, key_eps, key_next, key_coin, key_sample = jax.random.split(key, 5)
    size, action_size = batch.action.shape
    backup = 0 if config.improvement == "iql" else config.backup_actions if config.max_q_backup else 1
    samples = config.crr_samples if config.improvement == "crr" else 0
    return Draws(
        t=jax.random.randint(key_t, (size,), 0, config.num_steps),
        eps=jax.random.normal(key_eps, (size, action_size)),
        next_noise=draw_chain(config, key_next, (size, backup, action_size)),
        maximise_first=jax.random.bernoulli(key_coin),
        sample_noise=jax.random.normal(key_sample, (size, samples, action_size)),
    )


# --- Actions ---


def predicted_action(
    policy: Denoiser, schedule: Schedule, batch: Transition, draws: Draws
) -> tuple[Scalar, Float[Array, "b act"]]:
    """L_d, and the action a_0 that one denoising step makes of the noisy logged one, from one pass of the network."""
    noisy = add_noise(schedule, batch.action, draws.t, draws.eps)
    eps = policy.given(batch.observation, schedule.num_steps)(noisy, draws.t)
    action = jnp.clip(predict_x0(schedule, noisy, draws.t, eps), -1.0, 1.0)
    return jnp.mean(jnp.square(draws.eps - eps)), action


def whole_steps(index: Float[np.ndarray, " calls"]) -> Int[np.ndarray, " calls"]:
    """The whole diffusion step at or below each; one that rounding left a little below a whole number counts as it."""
    return np.floor(index + 1e-6).astype(np.int32)


def sample_by_solver(
    policy: Denoiser,
    schedule: Schedule,
    calls: int,
    observation: Float[Array, "*#b obs"],
    start: Float[Array, "*b act"],
) -> Float[Array, "*b act"]:
    """a ~ policy(. | s) by DPM-Solver, in calls evenly spaced from the last diffusion step to the first.

    The network reads steps that are not whole, and its noise is clipped to where x_0 is in the box at the whole step
    below. The action itself is not clipped.
    """
    index = np.linspace(schedule.num_steps - 1, 0, calls + 1)
    solver = dpm_solver(log_alpha_between(schedule, index), solver_orders(calls, SOLVER_ORDER), "noise")
    denoise = policy.given_at(observation, jnp.asarray(index[:-1], jnp.float32))
    whole = jnp.asarray(whole_steps(index[:-1]))

    def predict(x: Float[Array, "*b act"], call: Int[Array, ""]) -> Float[Array, "*b act"]:
        return clip_noise(schedule, x, whole[call], denoise(x, call))

    return sample_dpm(solver, predict, start)


def sample(
    policy: Denoiser,
    schedule: Schedule,
    observation: Float[Array, "*#b obs"],
    noise: Float[Array, "rows *b act"],
    config: Config,
) -> Float[Array, "*b act"]:
    """a ~ policy(. | s) by the sampler of `config`."""
    if config.sampler == "dpm":
        return sample_by_solver(policy, schedule, config.solver_calls, observation, noise[0])
    return sample_action(policy, schedule, observation, noise)


# --- Losses ---


def critic_target(
    policy: Denoiser,
    critic: Critic,
    schedule: Schedule,
    batch: Transition,
    noise: Float[Array, "rows b k act"],
    config: Config,
) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) min_k max_i Q_phi'_k(s', a'_i), a'_i of the target policy; clipped for a max-Q backup."""
    action = sample(policy, schedule, batch.next_observation[:, None, :], noise, config)
    if config.max_q_backup:
        action = jnp.clip(action, -1.0, 1.0)
    q_next = max_over_candidates(critic(repeated(batch.next_observation, action.shape[1]), action))
    return clipped_double_q_target(batch.reward, batch.terminal, q_next, config.discount)


def regression_loss(
    action: Float[Array, "b act"], predicted: Float[Array, "b act"], weight: Float[Array, " b"]
) -> Scalar:
    """-E[w log N(a; a_0, I)], w under stop-gradient."""
    log_prob = log_density(action, predicted, jnp.zeros_like(predicted))
    return -jnp.mean(jax.lax.stop_gradient(weight) * log_prob)


def iql_weights(value: VNetwork, critic: Critic, batch: Transition, config: Config) -> Float[Array, " b"]:
    """w = min(exp(beta (min_k Q_k(s, a) - V(s))), w_max)."""
    advantage = jnp.min(critic(batch.observation, batch.action), axis=0) - value(batch.observation)
    return exponential_weights(config.iql_inverse_temperature * advantage, config.iql_max_weight)


def crr_weights(
    critic: Critic,
    batch: Transition,
    predicted: Float[Array, "b act"],
    noise: Float[Array, "b m act"],
    config: Config,
) -> Float[Array, " b"]:
    """w = min(exp(A / T), w_max), A = Q(s, a) - mean_j Q(s, a_0 + noise_j), Q = min_k Q_k; nothing is clipped in it."""
    sampled = predicted[:, None, :] + noise
    q_sampled = jnp.min(critic(repeated(batch.observation, noise.shape[1]), sampled), axis=0)
    advantage = jnp.min(critic(batch.observation, batch.action), axis=0) - jnp.mean(q_sampled, axis=-1)
    return exponential_weights(advantage / config.crr_temperature, config.crr_max_weight)


def td3_loss(
    policy: Denoiser, critic: Critic, schedule: Schedule, batch: Transition, draws: Draws, config: Config
) -> tuple[Scalar, Metrics]:
    """L_d - alpha E[Q_j(s, a_0)] / E|Q_j(s, a_0)|; also its terms."""
    loss, predicted = predicted_action(policy, schedule, batch, draws)
    maximised, _ = critic.pair(draws.maximise_first)
    q = maximised(batch.observation, predicted)
    q_loss = normalised_q_loss(q, q)
    return loss + config.q_weight * q_loss, {"actor/bc_loss": loss, "actor/q_loss": q_loss}


def weighted_loss(
    loss: Scalar, batch: Transition, predicted: Float[Array, "b act"], weight: Float[Array, " b"]
) -> tuple[Scalar, Metrics]:
    """L_d - E[w log N(a; a_0, I)]; also its terms and the mean weight."""
    regression = regression_loss(batch.action, predicted, weight)
    terms = {"actor/bc_loss": loss, "actor/regression_loss": regression, "actor/weight": jnp.mean(weight)}
    return loss + regression, terms


def iql_loss(
    policy: Denoiser,
    value: VNetwork,
    critic: Critic,
    schedule: Schedule,
    batch: Transition,
    draws: Draws,
    config: Config,
) -> tuple[Scalar, Metrics]:
    """`weighted_loss` with the weights of IQL, by V and the target critics."""
    loss, predicted = predicted_action(policy, schedule, batch, draws)
    return weighted_loss(loss, batch, predicted, iql_weights(value, critic, batch, config))


def crr_loss(
    policy: Denoiser, critic: Critic, schedule: Schedule, batch: Transition, draws: Draws, config: Config
) -> tuple[Scalar, Metrics]:
    """`weighted_loss` with the weights of CRR, by the critics."""
    loss, predicted = predicted_action(policy, schedule, batch, draws)
    return weighted_loss(loss, batch, predicted, crr_weights(critic, batch, predicted, draws.sample_noise, config))


def policy_loss(
    policy: Denoiser, state: State, schedule: Schedule, batch: Transition, draws: Draws, config: Config
) -> tuple[Scalar, Metrics]:
    """L_d + L_g, by the other networks as they are in `state`."""
    fixed = schedule, batch, draws, config
    if state.value is not None:
        return iql_loss(policy, state.value.model, state.target_critic, *fixed)
    loss = td3_loss if config.improvement == "td3" else crr_loss
    return loss(policy, state.critic.model, *fixed)


def target_of(state: State, schedule: Schedule, batch: Transition, draws: Draws, config: Config) -> Float[Array, " b"]:
    """y of the critics, by V where there is one, else by actions of the target policy."""
    if state.value is not None:
        return td_target(batch.reward, batch.terminal, state.value.model(batch.next_observation), config.discount)
    return critic_target(state.target_actor, state.target_critic, schedule, batch, draws.next_noise, config)


# --- The method ---


def new_networks(spec: Spec, config: Config, key: Key) -> tuple[Denoiser, Critic, VNetwork]:
    """Policy, critics and V with the initial weights of the authors' program: LeCun's normal law, biases 0."""
    key_actor, key_critic, key_value, key_law = jax.random.split(key, 4)
    hidden = (config.width,) * config.depth
    networks = (
        Denoiser(spec, config.width, config.depth, config.time_size, key_actor, endpoint=False),
        Critic(spec, hidden, key_critic),
        VNetwork(spec, hidden, key_value, activation=mish),
    )
    return initialised(networks, lecun_normal, key_law)


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """EDP for the given sizes. Real-valued fields of `config` may be traced arrays."""
    if config.sampler == "dpm" and config.num_steps < 2:
        raise UserError("num_steps is 1: sampler dpm goes from the last step to the first and needs 2 or more")
    batch = partial(sample_transitions, batch_size=config.batch_size)
    schedule = make_schedule(config.schedule, config.num_steps)
    actor_optimiser = clipped_adam(config.actor_learning_rate, config.max_grad_norm)
    critic_optimiser = each_alone(clipped_adam(config.critic_learning_rate, config.max_grad_norm))
    value_optimiser = clipped_adam(config.value_learning_rate, config.max_grad_norm)

    def init(key: Key) -> State:
        actor, critic, value = new_networks(spec, config, key)
        return State(
            actor=start(actor_optimiser, actor),
            target_actor=actor,
            critic=start(critic_optimiser, critic),
            target_critic=critic,
            value=start(value_optimiser, value) if config.improvement == "iql" else None,
        )

    def update(state: State, batch: Transition, draws: Draws, index: UpdateIndex) -> tuple[State, Metrics]:
        metrics: Metrics = {}

        # --- V ---
        if state.value is not None:
            value, loss, v, norm = minimise(
                value_optimiser, state.value, value_loss, state.target_critic, batch, config.expectile
            )
            metrics |= {"value/loss": loss, "value/v": jnp.mean(v), "value/grad_norm": norm}
            state = state._replace(value=value)

        # --- policy and critics, both from the networks as they are here ---
        fixed = schedule, batch, draws, config
        actor, _, terms, norm = minimise(actor_optimiser, state.actor, policy_loss, state, *fixed)
        metrics |= terms | {"actor/grad_norm": norm}
        target = target_of(state, *fixed)
        critic, loss, q, norm = minimise(critic_optimiser, state.critic, critic_loss, batch, target)
        metrics |= {"critic/loss": loss, "critic/q": jnp.mean(q), "critic/grad_norm": norm}

        # --- target networks ---
        moves = (index.count >= config.ema_start) & ((index.count + 1) % config.ema_every == 0)
        target_actor = moving_average_when(moves, state.target_actor, actor.model, config.ema_rate)
        target_critic = moving_average(state.target_critic, critic.model, config.target_rate)
        return State(actor, target_actor, critic, target_critic, state.value), metrics

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        key_noise, key_choice = jax.random.split(key)
        count = 1 if config.action_choice == "sample" else config.num_candidates
        noise = draw_chain(config, key_noise, (*observation.shape[:-1], count, spec.action_size))
        action = sample(state.actor.model, schedule, observation[..., None, :], noise, config)
        q = jnp.min(state.critic.model(repeated(observation, count), action), axis=0)
        action = choose_candidate(action, q, config.action_choice, config.candidate_temperature, key_choice)
        return jnp.clip(action, -1.0, 1.0)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        draws = draw(config, batch, key)
        td_loss, q = critic_loss(state.critic.model, batch, target_of(state, schedule, batch, draws, config))
        policies = state.actor.model, state.target_actor
        bc, target_bc = (predicted_action(policy, schedule, batch, draws)[0] for policy in policies)
        metrics = {"critic/td_error": td_loss / q.shape[0], "critic/q": jnp.mean(q), "actor/bc_loss": bc}
        if state.value is not None:
            loss, v = value_loss(state.value.model, state.target_critic, batch, config.expectile)
            metrics |= {"value/loss": loss, "value/v": jnp.mean(v)}
        return metrics | {"actor/target_bc_loss": target_bc, "selection/loss": bc}

    return Algorithm(init, (Stage(1, batch, update, draw=partial(draw, config)),), act, diagnose)


METRICS = {
    "actor/bc_loss": Metric("Denoising loss $L_d$", "L_d", "log"),
    **CRITIC_METRICS,
    "actor/q_loss": Metric("Q term of td3's loss, -E[Q] / E|Q|"),
    "actor/regression_loss": Metric("Weighted negative log-likelihood, of iql and crr"),
    "actor/weight": Metric("Mean weight of the logged actions, of iql and crr"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", scale="log"),
    "actor/target_bc_loss": Metric("Denoising loss $L_d$ of the target policy", scale="log"),
    "value/v": Metric("V of the data's observations, of iql"),
    "value/loss": Metric("Expectile loss of V, of iql", scale="log"),
    "value/grad_norm": Metric("Norm of V's gradient, of iql", scale="log"),
    "selection/loss": Metric("Denoising loss $L_d$ of the policy", scale="log"),
}
