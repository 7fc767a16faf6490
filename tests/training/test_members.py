"""Members train together as they would alone; one that diverges is frozen and the others go on."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import diffcps, diffusion_bc, td3_bc
from diffcps.training.members import Program, expand, written_out
from diffcps.types import Algorithm, Dataset, DatasetInfo, NetObservation, Stage

pytestmark = pytest.mark.usefixtures("quick_compilation")
INFO = DatasetInfo("made by a test", "0", action_low=(-1.0,) * 2, action_high=(1.0,) * 2)
SMALL = diffcps.Config(width=16, depth=1, num_steps=2, batch_size=8, ema_start=10, num_candidates=3)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    rows = 64
    return Dataset(
        observation=rng.normal(size=(rows, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        next_observation=rng.normal(size=(rows, 3)).astype(np.float32),
        terminal=rng.random(rows) < 0.1,
        timeout=np.zeros(rows, bool),
        info=INFO,
    )


def program(dataset, members, config: Any = SMALL, module: Any = diffcps):
    return Program(lambda swept: module.make(dataclasses.replace(config, **swept), dataset.spec), members, dataset)


def test_expand_makes_every_combination_seeds_fastest():
    members = expand([3, 4], {"kappa": [0.1, 0.2], "discount": [0.9]})
    assert [(m.index, m.seed, m.swept) for m in members] == [
        (0, 3, {"kappa": 0.1, "discount": 0.9}),
        (1, 4, {"kappa": 0.1, "discount": 0.9}),
        (2, 3, {"kappa": 0.2, "discount": 0.9}),
        (3, 4, {"kappa": 0.2, "discount": 0.9}),
    ]
    assert members[3].label == "seed 4, kappa 0.2, discount 0.9"


def run(dataset, seeds, updates, grain, sweep=None):
    members = expand(seeds, sweep or {})
    made = program(dataset, members)
    state, alive, curves = made.init(), jnp.ones(len(members), bool), []
    for first in range(0, updates, grain):
        state, alive, metrics = made.advance(state, alive, first, first + grain)
        curves.append(metrics)
    assert bool(alive.all())
    return state, {name: np.stack([metrics[name] for metrics in curves]) for name in curves[0]}


def test_a_seed_among_four_has_the_curve_it_has_alone(dataset):
    """Over 200 updates; rounding differs with the number of devices, and later the two drift apart as rounding does."""
    _, alone = run(dataset, [2], 200, 20)
    _, together = run(dataset, [0, 1, 2, 3], 200, 20)
    for name, curve in alone.items():
        np.testing.assert_allclose(curve[:, 0], together[name][:, 2], rtol=2e-3, atol=2e-4, err_msg=name)
    assert not np.allclose(together["critic/loss"][:, 0], together["critic/loss"][:, 2], rtol=1e-2)


@pytest.mark.parametrize(("module", "config"), [(diffcps, SMALL), (td3_bc, td3_bc.Config(width=16, batch_size=8))])
def test_updates_that_are_written_out_are_those_that_ask(dataset, monkeypatch, module, config):
    """As on a GPU, from any update to any other: the policy moves at every third."""
    config = dataclasses.replace(config, policy_interval=3)

    def trained():
        made = program(dataset, expand([0, 1], {}), config, module)
        state, alive, found = made.init(), jnp.ones(2, bool), []
        for first, last in ((0, 7), (7, 8), (8, 14)):
            state, alive, metrics = made.advance(state, alive, first, last)
            found.append({name: np.asarray(value) for name, value in metrics.items()})
        assert bool(alive.all())
        return jax.tree.map(np.asarray, state), found

    state, metrics = trained()
    periods = []
    monkeypatch.setattr(
        "diffcps.training.members.written_out", lambda stage, platform: periods.append(stage.period) or stage.period
    )
    other, of_other = trained()
    assert periods == [3, 3, 3]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state, other)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), metrics, of_other)
    assert np.isnan(of_other[1]["actor/q_loss"]).all() and np.isfinite(of_other[2]["actor/q_loss"]).all()


def test_few_updates_are_written_out_and_on_gpus_alone(dataset):
    def written(period: int, platform: str) -> int:
        stage = dataclasses.replace(diffcps.make(SMALL, dataset.spec).stages[0], period=period)
        return written_out(stage, platform)

    assert [written(period, "gpu") for period in (1, 2, 4, 5, 100)] == [1, 2, 4, 1, 1]
    assert [written(period, "cpu") for period in (1, 2, 4)] == [1, 1, 1]


@pytest.mark.slow
def test_the_grain_of_the_calls_changes_nothing(dataset):
    """An interrupted run stops at another place than a run that goes on: both must have made the same updates."""
    coarse, _ = run(dataset, [0, 1], 40, 40)
    fine, _ = run(dataset, [0, 1], 40, 8)
    for ours, theirs in zip(jax.tree.leaves(coarse), jax.tree.leaves(fine), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_batch_and_the_noise_of_each_update_have_keys_of_their_own(dataset):
    updates = 30

    def update(state, batch, draws, index):
        return state.at[index.count].set(jnp.concatenate([batch, draws])), {}

    def number(of, key):
        return jax.random.uniform(key, (1,))

    stage = Stage(1, number, update, draw=number)
    noting = Algorithm(lambda key: jnp.zeros((updates, 2)), (stage,), lambda *_: jnp.zeros(2), lambda *_: {})
    made = Program(lambda swept: noting, expand([0, 1], {}), dataset)
    state, _, _ = made.advance(made.init(), jnp.ones(2, bool), 0, updates)
    assert len(np.unique(state)) == 2 * updates * 2


@pytest.mark.slow  # the contract maps over every real-valued field
def test_a_swept_value_acts_as_if_configured(dataset):
    swept, _ = run(dataset, [0], 30, 30, {"kappa": [0.01, 5.0], "discount": [0.5]})
    single = program(dataset, expand([0], {}), dataclasses.replace(SMALL, kappa=5.0, discount=0.5))
    alone, _, _ = single.advance(single.init(), jnp.ones(1, bool), 0, 30)
    for ours, theirs in zip(jax.tree.leaves(swept), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours[1], theirs[0], rtol=1e-4, atol=1e-5)
    assert float(swept.multiplier.model[0]) > 1.0 > float(swept.multiplier.model[1])


def test_a_diverging_member_keeps_its_last_good_state_and_the_others_go_on(dataset):
    members = expand([0], {"learning_rate": [3e-4, 1e38]})
    config = diffusion_bc.Config(width=16, depth=1, num_steps=2, batch_size=8)
    made = program(dataset, members, config, diffusion_bc)
    state = made.init()
    before = jax.tree.map(np.array, state)
    state, alive, _ = made.advance(state, jnp.ones(2, bool), 0, 20)
    assert alive.tolist() == [True, False]
    state, alive, _ = made.advance(state, alive, 20, 40)
    assert alive.tolist() == [True, False]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(old[1], new[1])
        assert not np.array_equal(old[0], new[0])


def test_metrics_are_means_over_the_updates_that_report_them(dataset):
    members = expand([0], {})
    made = program(dataset, members)
    state, alive, metrics = made.advance(made.init(), jnp.ones(1, bool), 1, 2)  # an odd update: the policy waits
    assert np.isnan(metrics["actor/bc_loss"][0]) and np.isfinite(metrics["critic/loss"][0])
    _, _, first = made.advance(state, alive, 2, 3)
    assert np.isfinite(first["actor/bc_loss"][0])


def test_act_is_the_same_for_the_same_step_and_differs_between_steps(dataset):
    made = program(dataset, expand([0, 1], {}))
    state = made.init()
    observation = NetObservation(np.zeros((2, 5, 3), np.float32))
    action = made.act(state, observation, 10, 0)
    assert action.shape == (2, 5, 2) and np.abs(action).max() <= 1.0
    np.testing.assert_array_equal(action, made.act(state, observation, 10, 0))
    assert not np.array_equal(action, made.act(state, observation, 10, 1))
    assert not np.array_equal(action[0], action[1])
