"""SAC: soft actor-critic, learning online. It makes behaviour policies and replay buffers; nothing here is offline.

    y       = r + gamma (1 - d) (min_j Q'_j(s', a') - alpha log pi(a' | s')),    a' ~ pi(. | s')
    L_Q     = sum_j mean (Q_j(s, a) - y)^2
    L_pi    = mean (alpha log pi(a | s) - min_j Q_j(s, a)),                      a ~ pi(. | s), reparameterised
    L_alpha = -mean log_alpha (log pi(a | s) + target),                          target = target_entropy |A|

As in rlkit, which made D4RL's data, a run is a chain of iterations: some steps in the environment with the policy held
still, then as many updates. An iteration begins with a reset and cuts its last episode, and all its randomness follows
from the seed and its number. So the networks, the optimisers and the transitions so far are the whole state of a run:
it goes on from its files with the same bits, and nothing of the simulator has to be stored.

References: arXiv:1812.05905; https://github.com/rail-berkeley/rlkit, examples/sac.py, for the default numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffcps.collect.files import Columns, load_part
from diffcps.collect.play import BehaviourPolicy, play
from diffcps.data.writers import write_npz
from diffcps.networks.critic import Critic
from diffcps.networks.squashed import SquashedGaussian, squashed_log_prob
from diffcps.optim import Trained, clipped_adam, descend, moving_average, start
from diffcps.rl.bellman import clipped_double_q_target, td_loss
from diffcps.storage import Json, claim, locked
from diffcps.training import checkpoint
from diffcps.types import Key, Metrics, Scalar, Spec, Transition, UserError

if TYPE_CHECKING:
    import gymnasium


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of a run; the defaults are rlkit's."""

    learning_rate: float = 3e-4
    """Of actor, critics and temperature."""
    batch_size: int = 256
    discount: float = 0.99
    target_rate: float = 0.005
    """Polyak rate of the target critics, applied at each update."""
    target_entropy: float = -1.0
    """Entropy that the temperature aims at, for each action dimension."""
    width: int = 256
    depth: int = 2
    """Hidden layers."""
    random_steps: int = 1000
    """Steps of uniform actions before the policy acts; no updates are made for them."""
    iteration_steps: int = 1000
    """Steps of an iteration, and its updates."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[SquashedGaussian]
    critic: Trained[Critic]
    target_critic: Critic
    log_alpha: Trained[Array]


def init(config: Config, spec: Spec, key: Key) -> State:
    """Fresh networks, temperature 1."""
    key_actor, key_critic = jax.random.split(key)
    optimiser = _optimiser(config)
    actor = SquashedGaussian(spec, config.width, config.depth, key_actor)
    critic = Critic(spec, (config.width,) * config.depth, key_critic, jax.nn.relu)
    return State(start(optimiser, actor), start(optimiser, critic), critic, start(optimiser, jnp.zeros(())))


def update(config: Config, state: State, batch: Transition, key: Key) -> tuple[State, Metrics]:
    """One update of temperature, actor, critics and target critics."""
    key_now, key_next = jax.random.split(key)
    optimiser = _optimiser(config)
    target_entropy = config.target_entropy * batch.action.shape[-1]
    alpha = jnp.exp(state.log_alpha.model)

    def actor_loss(actor: SquashedGaussian) -> tuple[Scalar, Scalar]:
        action, log_prob = sample_with_log_prob(actor, batch.observation, key_now)
        q = jnp.min(state.critic.model(batch.observation, action), axis=0)
        return jnp.mean(alpha * log_prob - q), jnp.mean(log_prob)

    def critic_loss(critic: Critic) -> Scalar:
        return td_loss(critic(batch.observation, batch.action), target)

    # --- Actor and temperature (whose loss is linear in log alpha) ---
    (_, log_prob), gradient = jax.value_and_grad(actor_loss, has_aux=True)(state.actor.model)
    actor, _ = descend(optimiser, state.actor, gradient)
    log_alpha, _ = descend(optimiser, state.log_alpha, -(log_prob + target_entropy))

    # --- Critics ---
    next_action, next_log_prob = sample_with_log_prob(state.actor.model, batch.next_observation, key_next)
    q_next = state.target_critic(batch.next_observation, next_action) - alpha * next_log_prob
    target = clipped_double_q_target(batch.reward, batch.terminal, q_next, config.discount)
    td_error, gradient = jax.value_and_grad(critic_loss)(state.critic.model)
    critic, _ = descend(optimiser, state.critic, gradient)
    target_critic = moving_average(state.target_critic, critic.model, config.target_rate)

    metrics = {"critic/td_error": td_error, "actor/entropy": -log_prob, "alpha": alpha, "critic/target": target.mean()}
    return State(actor, critic, target_critic, log_alpha), metrics


def sample_with_log_prob(
    actor: SquashedGaussian, observation: Float[Array, "*b obs"], key: Key
) -> tuple[Float[Array, "*b act"], Float[Array, "*b"]]:
    """a = tanh(u), u Gaussian, and log pi(a | s)."""
    mean, log_std = actor(observation)
    noise = jax.random.normal(key, mean.shape)
    return jnp.tanh(mean + jnp.exp(log_std) * noise), squashed_log_prob(noise, mean, log_std)


@jax.jit
def sample(
    actor: SquashedGaussian, observation: Float[Array | np.ndarray, "*b obs"], noise: Float[Array | np.ndarray, "*b a"]
) -> Float[Array, "*b a"]:
    """tanh(mean + std noise): an action of the policy for standard normal noise, its median for noise 0."""
    mean, log_std = actor(jnp.asarray(observation))
    return jnp.tanh(mean + jnp.exp(log_std) * noise)


def uniform(spec: Spec, rng: np.random.Generator) -> BehaviourPolicy:
    """Actions uniform in [-1, 1], whatever the observation."""
    return lambda observation, step: rng.uniform(-1.0, 1.0, spec.action_size).astype(np.float32)


def sampled(actor: SquashedGaussian, spec: Spec, rng: np.random.Generator) -> BehaviourPolicy:
    """Actions sampled from the actor."""
    return lambda observation, step: np.asarray(
        sample(actor, observation, rng.standard_normal(spec.action_size, np.float32))
    )


def train_online(
    environment: gymnasium.Env,
    config: Config,
    folder: Path,
    *,
    steps: int,
    seed: int,
    on_iteration: Callable[[int, SquashedGaussian], bool] | None = None,
) -> SquashedGaussian:
    """Trains until `steps` steps were made in the environment and returns the actor. The caller closes it.

    `environment` has flat observations, actions in [-1, 1] and a time limit, and its state follows from
    `reset(seed=...)`. `folder` holds everything: config.json, checkpoints/last.safetensors, and the transitions of each
    iteration in transitions/. It is left at any moment and gone on with by the same call: the bits are the same as
    without the break, on the same machine. `on_iteration(iteration, actor)`, counted from 1, is called before the
    checkpoint of its iteration is written (so again, should that fail); the run pauses where it returns True.

    Raises `UserError` where `steps` is no multiple of `config.iteration_steps`, the action box is not [-1, 1], or the
    folder holds another run.
    """
    if steps % config.iteration_steps or config.random_steps % config.iteration_steps:
        raise UserError(
            f"{steps} steps, {config.random_steps} of them random, cannot be split into iterations of "
            f"{config.iteration_steps}: take multiples"
        )
    spec = spec_of(environment)
    last = folder / "checkpoints" / "last.safetensors"
    with locked(folder):
        name = type(environment.unwrapped).__name__ if environment.spec is None else environment.spec.id
        content: dict[str, Json] = {"online": "sac", "environment": name, "seed": seed}
        claim(folder / "config.json", content | {"config": dataclasses.asdict(config)})
        key_init, key_updates = jax.random.split(jax.random.key(seed))
        state, done = init(config, spec, key_init), 0
        if last.exists():
            state, information = checkpoint.load(last, state)
            state, done = jax.tree.map(jnp.asarray, state), information["iteration"]
            assert isinstance(done, int)
        buffer = _empty(spec, max(steps, done * config.iteration_steps))
        for iteration in range(done):
            part = load_part(part_path(folder, iteration))
            buffer = _put(buffer, _transitions(part), iteration * config.iteration_steps)

        for iteration in range(done, steps // config.iteration_steps):
            first = iteration * config.iteration_steps
            part = _explore(environment, config, state.actor.model, spec, seed, iteration)
            write_npz(part_path(folder, iteration), part, {})
            buffer = _put(buffer, _transitions(part), first)
            metrics: Metrics = {}
            if first >= config.random_steps:
                key = jax.random.fold_in(key_updates, iteration)
                state, metrics = _learn(config, state, buffer, first + config.iteration_steps, key)
                _check_finite(metrics, first)
            pause = on_iteration is not None and on_iteration(iteration + 1, state.actor.model)
            values: dict[str, Json] = {name: float(value) for name, value in metrics.items()}
            last.parent.mkdir(exist_ok=True)
            checkpoint.save(last, state, {"iteration": iteration + 1, "metrics": values})
            if pause:
                break
        return state.actor.model


def save_actor(path: Path, actor: SquashedGaussian, information: Mapping[str, Json]) -> None:
    """Writes the actor's arrays and `information` as safetensors. The folder is made where it is missing."""
    first, *_, last = actor.network.layers
    sizes: dict[str, Json] = {
        "observation_size": first.weight.shape[0],
        "action_size": last.weight.shape[1] // 2,
        "width": first.weight.shape[1],
        "depth": len(actor.network.layers) - 1,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, actor, {**information, "actor": sizes})


def load_actor(path: Path) -> tuple[SquashedGaussian, dict[str, Json]]:
    """What `save_actor` wrote. Raises `UserError` where the file is missing or damaged."""
    information = checkpoint.information(path)
    match information.pop("actor", None):
        case {
            "observation_size": int(observation_size),
            "action_size": int(action_size),
            "width": int(width),
            "depth": int(depth),
        }:
            like = SquashedGaussian(Spec(observation_size, action_size), width, depth, jax.random.key(0))
            return checkpoint.load(path, like)[0], information
    raise UserError(f"{path}: not the actor of an online run")


def transitions_of(folder: Path, iterations: int) -> list[Columns]:
    """What the first `iterations` iterations of the run in `folder` stored, in order: its replay buffer."""
    return [load_part(part_path(folder, iteration)) for iteration in range(iterations)]


def _optimiser(config: Config):
    return clipped_adam(config.learning_rate, math.inf)


def spec_of(environment: gymnasium.Env) -> Spec:
    """Sizes of an environment. Raises `UserError` where observations are not flat, or actions not in [-1, 1]."""
    from gymnasium.spaces import Box

    observation, action = environment.observation_space, environment.action_space
    if observation.shape is None or action.shape is None or len(observation.shape) != 1:
        raise UserError("online training needs flat observations and actions")
    if not (isinstance(action, Box) and (action.low == -1).all() and (action.high == 1).all()):
        raise UserError(f"online training needs actions in [-1, 1], not in {action}: wrap with RescaleAction")
    return Spec(observation.shape[0], action.shape[0])


def part_path(folder: Path, iteration: int) -> Path:
    """Where the transitions of an iteration, counted from 0, lie in the folder of a run."""
    return folder / "transitions" / f"{iteration:06d}.npz"


def _explore(
    environment: gymnasium.Env, config: Config, actor: SquashedGaussian, spec: Spec, seed: int, iteration: int
) -> Columns:
    """The steps of one iteration."""
    rng = np.random.default_rng((seed, iteration))
    random = iteration * config.iteration_steps < config.random_steps
    act = uniform(spec, rng) if random else sampled(actor, spec, rng)
    return play(environment, act, steps=config.iteration_steps, seed=int(rng.integers(2**31)))


def _empty(spec: Spec, rows: int) -> Transition:
    observation, action, number = (
        jnp.zeros(shape) for shape in ((rows, spec.observation_size), (rows, spec.action_size), (rows,))
    )
    return Transition(observation, action, number, observation.copy(), number.copy())


def _transitions(part: Columns) -> Transition:
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    return Transition(*(jnp.asarray(part[name], jnp.float32) for name in names))


@partial(jax.jit, donate_argnums=0)
def _put(buffer: Transition, rows: Transition, first: Int[Array, ""] | int) -> Transition:
    """The buffer with `rows` written from row `first` on, in place."""
    return jax.tree.map(
        lambda column, new: jax.lax.dynamic_update_slice_in_dim(column, new, first, axis=0), buffer, rows
    )


@partial(jax.jit, static_argnums=0)
def _learn(
    config: Config, state: State, buffer: Transition, size: Int[Array, ""] | int, key: Key
) -> tuple[State, Metrics]:
    """`iteration_steps` updates on batches from the first `size` rows; metrics are those of the last one."""

    def one(state: State, key: Key) -> tuple[State, Metrics]:
        key_rows, key_update = jax.random.split(key)
        row = jax.random.randint(key_rows, (config.batch_size,), 0, size)
        return update(config, state, jax.tree.map(lambda column: column[row], buffer), key_update)

    state, metrics = jax.lax.scan(one, state, jax.random.split(key, config.iteration_steps))
    return state, jax.tree.map(lambda value: value[-1], metrics)


def _check_finite(metrics: Metrics, step: int) -> None:
    if not all(bool(jnp.isfinite(value)) for value in metrics.values()):
        raise UserError(f"the online training has diverged at step {step}: take another --seed")
