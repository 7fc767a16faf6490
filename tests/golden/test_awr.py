"""AWR against numbers recorded from the authors' program: two iterations of 20 updates of value and policy each."""

from __future__ import annotations

from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import awr
from diffcps.networks.gaussian import Gaussian
from diffcps.rl.regression import exponential_weights
from diffcps.rl.replay import Labelled
from diffcps.types import Dataset, DatasetInfo, Real, UpdateIndex
from tests.conftest import load_golden
from tests.golden.replay import SPEC, recorded, state_with
from tests.golden.weights import distance, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("landed/awr_2_iterations")
CONFIG = awr.Config(width=32, second_width=24, batch_size=16, iterations=2)
TOLERANCE = 1e-6
"""Of parameters; they agree to 9e-8."""


def network(prefix: str) -> Any:
    hidden, last = [f"{prefix}/{i}/dense" for i in (0, 1)], "mean/dense" if prefix.endswith("actor") else "dense"
    layers = mlp(ARRAYS, [*hidden, f"{prefix}/{last}"], jax.nn.relu)
    if prefix.endswith("critic"):
        return layers
    policy = Gaussian(SPEC, (32, 24), jax.random.key(0), std=CONFIG.std)
    return eqx.tree_at(lambda policy: policy.network, policy, layers)


def rows() -> Dataset:
    observation, action, reward, following, terminal, timeout = recorded(
        ARRAYS, "rows", "observation", "action", "reward", "next_observation", "terminal", "timeout"
    )
    return Dataset(observation, action, reward, following, terminal, timeout, DatasetInfo("recorded", "0"))


def batches(dataset: Dataset, labels: jax.Array, indices: jax.Array) -> Labelled:
    return Labelled(dataset.observation[indices], dataset.action[indices], labels[indices])


@jax.jit
def two_iterations(trace: Real, max_weight: Real) -> dict[str, Any]:
    """The trained networks after each update, the labels of each stage, and all losses."""
    config = awr.Config(**{**vars(CONFIG), "trace": trace, "max_weight": max_weight})
    algorithm, dataset, key = awr.make(config, SPEC), rows(), jax.random.key(0)
    state = state_with(algorithm, actor=network("before/actor"), critic=network("before/critic"))
    found: dict[str, list[Any]] = {"critic": [], "actor": [], "labels": [], "critic/loss": [], "actor/loss": []}
    for number, stage in enumerate(algorithm.stages):
        part, iteration = ("critic", "actor")[number % 2], number // 2
        state, labels = stage.begin(state, dataset, key)

        def body(state, batch, stage=stage, part=part):
            state, metrics = stage.update(state, batch, (), UpdateIndex(jnp.asarray(0)))
            return state, (getattr(state, part).model, metrics[f"{part}/loss"])

        chosen = jnp.asarray(ARRAYS[f"steps/{part}_rows"][iteration])
        state, (networks, losses) = jax.lax.scan(body, state, batches(dataset, labels, chosen))
        found[part].append(networks)
        found[f"{part}/loss"].append(losses)
        found["labels"].append(labels)
    return found


@cache
def found(trace: float = 0.95, max_weight: float = 20.0) -> dict[str, Any]:
    return two_iterations(jnp.float32(trace), jnp.float32(max_weight))


def after(found: dict[str, Any], part: str, iteration: int, updates: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[updates - 1], found[part][iteration - 1])


@pytest.mark.parametrize("part", ["critic", "actor"])
@pytest.mark.parametrize(
    ("recording", "iteration", "updates"),
    [("after_{}_1", 1, 1), ("after_iteration_1", 1, 20), ("after_iteration_2", 2, 20)],
)
def test_parameters(part, recording, iteration, updates):
    theirs = network(f"{recording.format(part)}/{part}")
    assert distance(after(found(), part, iteration, updates), theirs) < TOLERANCE
    assert distance(network(f"before/{part}"), theirs) > 10 * TOLERANCE


def test_returns_and_advantages():
    for iteration in range(2):
        returns, advantage = found()["labels"][2 * iteration : 2 * iteration + 2]
        np.testing.assert_allclose(returns, ARRAYS["stage/returns_for_critic"][iteration], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(advantage, ARRAYS["stage/advantage"][iteration], rtol=0, atol=2e-5)


def test_targets_weights_and_losses():
    for iteration in range(2):
        returns, advantage = found()["labels"][2 * iteration : 2 * iteration + 2]
        chosen = {part: ARRAYS[f"steps/{part}_rows"][iteration] for part in ("critic", "actor")}
        target = ARRAYS["steps/critic_target"][iteration]
        np.testing.assert_allclose(returns[chosen["critic"]], target, rtol=1e-5, atol=1e-5)
        weight = exponential_weights(advantage / CONFIG.temperature, CONFIG.max_weight)
        np.testing.assert_allclose(weight[chosen["actor"]], ARRAYS["steps/actor_weight"][iteration], rtol=3e-5)
        for part in ("critic", "actor"):
            theirs = ARRAYS[f"steps/{part}_loss"][iteration]
            np.testing.assert_allclose(found()[f"{part}/loss"][iteration], theirs, rtol=1e-5, atol=1e-6)
    assert np.max(ARRAYS["steps/actor_weight"]) == CONFIG.max_weight  # the cut took part


def test_the_mean_is_the_action():
    policy = network("after_iteration_2/actor")
    state = state_with(awr.make(CONFIG, SPEC), actor=policy)
    action = jax.jit(awr.make(CONFIG, SPEC).act)(state, jnp.asarray(ARRAYS["act/observation"]), jax.random.key(0))
    np.testing.assert_allclose(action, ARRAYS["act/action"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "part"),
    [({"trace": 0.94}, "critic"), ({"trace": 0.94}, "actor"), ({"max_weight": 19.0}, "actor")],
    ids=str,
)
def test_small_departures_show(change, part):
    ours = after(found(**change), part, 2, 20)
    assert distance(ours, network(f"after_iteration_2/{part}")) > 3 * TOLERANCE
