"""SfBC against numbers recorded from the authors' program: both rounds of the critic, and the choice of actions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import sfbc
from diffcps.networks.critic import Critic
from diffcps.rl.replay import Labelled
from diffcps.types import Dataset, DatasetInfo, Transition, UpdateIndex
from tests.conftest import load_golden
from tests.golden.replay import SPEC, recorded, state_with
from tests.golden.weights import distance, ensemble, mlp
from tests.problems import begun

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("landed/sfbc_2_rounds")
CONFIG = sfbc.Config(width=32, behaviour_width=8, behaviour_depth=1, num_features=4, num_steps=1, batch_size=20)
UPDATES = (200, 198)
TOLERANCE = 1e-5
"""Of parameters; they agree to 2e-6."""


def critic_of(prefix: str) -> Critic:
    return ensemble(mlp(ARRAYS, [f"{prefix}/critic/sort.{i}" for i in (0, 2, 4)], jax.nn.silu))


def rows() -> Dataset:
    observation, action, reward, terminal, timeout = recorded(
        ARRAYS, "rows", "observation", "action", "reward", "terminal", "timeout"
    )
    unread = observation  # the next ones
    return Dataset(observation, action, reward, unread, terminal, timeout, DatasetInfo("recorded", "0"))


def recorded_candidates(behaviour, frequency, critic, chain, observation, count, key):
    """The recorded support actions of the rows with the given observations, and their Q."""
    same = jnp.all(observation[..., None, :] == jnp.asarray(ARRAYS["rows/observation"]), axis=-1)
    action = jnp.asarray(ARRAYS["rows/support_actions"])[jnp.argmax(same, axis=-1)]
    repeated = jnp.broadcast_to(observation[..., None, :], (*action.shape[:-1], observation.shape[-1]))
    return action, critic(repeated, action)[0]


def two_rounds(config: sfbc.Config) -> list[tuple[Critic, jax.Array, jax.Array, jax.Array]]:
    """For each round the critic after every update, the labels, the losses, and mean and deviation of the returns."""
    algorithm, dataset, key = sfbc.make(config, SPEC), rows(), jax.random.key(0)
    state = state_with(algorithm, critic=critic_of("before"), initial_critic=critic_of("before"))
    chosen = jnp.split(jnp.asarray(ARRAYS["steps/rows"]), [UPDATES[0]])
    found = []
    for stage, indices in zip(algorithm.stages[1:], chosen, strict=True):
        state, labels = begun(stage, state, dataset, key)

        def body(state, batch, stage=stage):
            state, metrics = stage.update(state, batch, (), UpdateIndex(jnp.asarray(0)))
            return state, (state.critic.model, metrics["critic/loss"])

        batches = Labelled(dataset.observation[indices], dataset.action[indices], labels[indices])
        state, (critics, losses) = jax.lax.scan(body, state, batches)
        found.append((critics, labels, losses, jnp.stack([state.return_mean, state.return_std])))
    return found


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sfbc, "candidates", recorded_candidates)
        return jax.jit(lambda: two_rounds(CONFIG))()


@pytest.mark.parametrize(
    ("recording", "number", "updates"), [("after_1_epoch", 1, 2), ("after_round_1", 1, 200), ("after_round_2", 2, 198)]
)
def test_parameters(found, recording, number, updates):
    ours = jax.tree.map(lambda leaf: leaf[updates - 1], found[number - 1][0])
    assert distance(ours, critic_of(recording)) < TOLERANCE
    assert distance(critic_of("before"), critic_of(recording)) > 100 * TOLERANCE


@pytest.mark.parametrize("number", [1, 2])
def test_targets(found, number):
    _, labels, _, mean_std = found[number - 1]
    np.testing.assert_allclose(labels, ARRAYS[f"round_{number}/target"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(mean_std, ARRAYS[f"round_{number}/mean_std"], rtol=1e-5)


def test_planned_returns(found):
    _, labels, _, (mean, std) = found[1]
    np.testing.assert_allclose(mean + std * labels, ARRAYS["round_2/returns"], rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(labels - found[0][1])) > 0.1  # negative control: planning did something


def test_values_of_the_support_actions(found):
    critic = jax.tree.map(lambda leaf: leaf[-1], found[0][0])
    _, q = recorded_candidates(None, None, critic, None, rows().observation, 16, None)
    np.testing.assert_allclose(q, ARRAYS["round_2/values"], rtol=0, atol=2e-5)


def test_losses(found):
    losses = np.concatenate([losses for _, _, losses, _ in found])
    np.testing.assert_allclose(losses, ARRAYS["metrics/critic_loss"], rtol=0, atol=1e-5)


def test_the_chain_and_the_times_are_the_programs(monkeypatch):
    """DPM-Solver of order 3 for noise in 15 calls; times from 1e-5 on."""
    chains = []
    monkeypatch.setattr(sfbc, "sample_actions", lambda *arguments: chains.append(arguments[2]) or arguments[-1])
    made = sfbc.make(sfbc.Config(width=8, behaviour_width=8, behaviour_depth=1, num_features=200), SPEC)
    state = jax.jit(made.init)(jax.random.key(0))
    assert 20.0 < np.std(state.frequency) < 40.0  # of N(0, 30^2), a hundred
    made.act(state, jnp.zeros(SPEC.observation_size), jax.random.key(1))
    (chain,) = chains
    assert chain.predicts == "noise"
    np.testing.assert_array_equal(np.diff(np.append(np.flatnonzero(chain.solver.starts), 15)), (3, 3, 3, 3, 2, 1))
    zeros = jnp.zeros((100_000, 1))
    rows = Transition(zeros, zeros, zeros[:, 0], zeros, zeros[:, 0])
    t = sfbc.draw(rows, jax.random.key(2)).t
    assert 1e-5 <= t.min() < 1e-4 and 0.999 < t.max() <= 1.0


def test_small_departures_show(monkeypatch):
    monkeypatch.setattr(sfbc, "candidates", recorded_candidates)

    @jax.jit
    def planned(planning_sharpness: jax.Array, discount: jax.Array) -> jax.Array:
        config = dataclasses.replace(CONFIG, planning_sharpness=planning_sharpness, discount=discount)
        algorithm = sfbc.make(config, SPEC)
        state = state_with(algorithm, critic=critic_of("after_round_1"), initial_critic=critic_of("before"))
        mean, std = jnp.asarray(ARRAYS["round_1/mean_std"], jnp.float32)
        state = state._replace(return_mean=mean, return_std=std)
        return begun(algorithm.stages[2], state, rows(), jax.random.key(0))[1]

    def error(*values: float) -> float:
        return np.max(np.abs(planned(*map(jnp.float32, values)) - ARRAYS["round_2/target"]))

    assert error(20.0, 0.99) < 2e-5
    assert error(21.0, 0.99) > 1e-4
    assert error(20.0, 0.989) > 1e-4


# --- The choice of actions ---

DRAWS = 4000
"""As many as the recorded means and deviations are of."""


def chosen(count: int, sharpness: float = 100.0) -> np.ndarray:
    """Actions chosen for each recorded observation: (observation, draw, dimension)."""
    action, q = jnp.asarray(ARRAYS["act/candidates"]), jnp.asarray(ARRAYS["act/q"])
    keys = jax.random.split(jax.random.key(0), DRAWS)
    draw = jax.vmap(lambda key: sfbc.mean_of_chosen(action, q, sharpness, count, key), out_axes=1)
    return np.asarray(jax.jit(draw)(keys))


def test_q_of_the_candidates():
    observation, action = jnp.asarray(ARRAYS["act/observation"]), jnp.asarray(ARRAYS["act/candidates"])
    q = critic_of("after_round_2")(jnp.broadcast_to(observation[:, None], (3, 32, 5)), action)[0]
    np.testing.assert_allclose(q, ARRAYS["act/q"], rtol=0, atol=1e-5)


def test_single_candidates_are_drawn_with_the_recorded_probabilities():
    def frequencies(actions: np.ndarray) -> np.ndarray:
        same = np.all(actions[:, :, None] == ARRAYS["act/candidates"][:, None], axis=-1)
        return np.mean(same, axis=1)

    probability = ARRAYS["act/probability_m1"]
    error = 5.0 * np.sqrt(probability * (1.0 - probability) / DRAWS) + 1e-3
    assert np.all(np.abs(frequencies(chosen(1)) - probability) < error)
    assert np.any(np.abs(frequencies(chosen(1, sharpness=50.0)) - probability) > error)  # negative control


def test_mean_and_deviation_of_averaged_actions():
    mean, std = ARRAYS["act/mean_action_m4"], ARRAYS["act/std_action_m4"]
    error = 5.0 * np.sqrt(2.0 / DRAWS) * std + 1e-3

    def misses(actions: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(actions.mean(axis=1) - mean), np.abs(actions.std(axis=1) - std))

    assert np.all(misses(chosen(4)) < error)
    assert np.any(misses(chosen(4, sharpness=50.0)) > error)  # negative control
