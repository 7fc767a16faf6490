"""Fitted Q evaluation: its equation by hand, against exact values, and its bias where that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.ope import fqe
from diffcps.training import loop
from diffcps.training.members import Program, expand
from diffcps.types import Dataset, Spec, Transition
from tests.problems import LINE, LINE_DISCOUNT, dataset_of, exact_q, line_of_states

SCALE = fqe.Units(mean=10.0, std=2.0, least=0.0, greatest=40.0)


class Constant:
    """A critic that always predicts the same."""

    def __init__(self, predicted: float):
        self.predicted = predicted

    def __call__(self, observation, action):
        return jnp.full((1, *observation.shape[:-1]), self.predicted)


def batch(reward: list[float], terminal: list[float]) -> fqe.Evaluated:
    rows = jnp.zeros((len(reward), 1))
    logged = Transition(rows, rows, jnp.asarray(reward), rows, jnp.asarray(terminal))
    return fqe.Evaluated(logged, rows)


def test_the_target_by_hand():
    """Q' = 10 + 2 x 3 = 16: y = r + 0.5 x 16, and r alone behind a termination."""
    config = fqe.Config(discount=0.5, clip_targets=False)
    found = fqe.critic_target(Constant(3.0), SCALE, batch([1.0, -50.0, 4.0], [0.0, 0.0, 1.0]), config)
    np.testing.assert_allclose(found, [9.0, -42.0, 4.0])


def test_targets_stay_within_what_rewards_allow():
    config = fqe.Config(discount=0.5)
    found = fqe.critic_target(Constant(100.0), SCALE, batch([1.0, -200.0, 4.0], [0.0, 0.0, 1.0]), config)
    np.testing.assert_allclose(found, [40.0, 0.0, 4.0])


def test_the_loss_is_in_units_of_the_returns():
    """Predicted 3; targets 10 and 20 are 0 and 5: (9 + 4) / 2."""
    found = fqe.critic_loss(Constant(3.0), SCALE, batch([0.0, 0.0], [0.0, 0.0]), jnp.array([10.0, 20.0]))
    np.testing.assert_allclose(found, 6.5)


def plain(greatest: float) -> fqe.Units:
    """Values in the units of the rewards."""
    return fqe.Units(0.0, 1.0, -greatest, greatest)


def fitted(dataset: Dataset, next_actions: np.ndarray, config: fqe.Config, scale: fqe.Units, updates: int) -> fqe.State:
    """The values of several policies, "m n act"."""
    members = expand([0] * len(next_actions), {})
    program = Program(lambda swept: fqe.make(config, dataset.spec, scale), members, dataset)
    training = loop.begin(program)
    training.labels = program.place(next_actions)
    for _ in loop.advance(program, training, loop.Lengths(updates, updates, updates), lambda update: None):
        pass
    assert training.alive.all()
    return training.state


def test_values_of_policies_on_a_line_are_the_exact_ones():
    """A tabular problem: always right, always left, and half of each, against the solution of Bellman's equation."""
    dataset = line_of_states()
    sides = np.random.default_rng(0).choice([-1.0, 1.0], size=(dataset.size, 1)).astype(np.float32)
    actions = np.stack([np.ones_like(sides), -np.ones_like(sides), sides])
    config, scale = fqe.Config(discount=LINE_DISCOUNT, target_rate=0.05, learning_rate=1e-3, width=32), plain(10.0)
    state = fitted(dataset, actions, config, scale, 3_000)
    truths = [exact_q(value) for value in (lambda q: q[:, 1], lambda q: q[:, 0], lambda q: q.mean(axis=1))]
    states = np.eye(LINE, dtype=np.float32)
    for side, action in enumerate((-1.0, 1.0)):
        found = fqe.first_values(state, scale, states, np.full((3, LINE, 1), action, np.float32))
        for member, truth in enumerate(truths):
            np.testing.assert_allclose(found[member], truth[:, side], atol=0.05)
    assert np.abs(truths[0] - truths[1]).max() > 0.3  # one table of values would not fit all


def test_on_states_that_look_the_same_its_bias_is_the_known_one():
    """Two states, one look, a linear critic: fitted Q evaluation ends at w = (1 + 0.9 w + 0) / 2, not at the truth.

    A (reward 1) leads to B, which ends without reward; logged equally often. The truth at A is 1; the fixed point is
    w = E[r + gamma (1 - d) w] = 0.5 + 0.45 w, that is 0.909 from any state.
    """
    rows = 200
    zeros = np.zeros((rows, 1), np.float32)
    first = np.arange(rows) % 2 == 0
    dataset = dataset_of(zeros, zeros, first.astype(np.float32), zeros, ~first)
    config = fqe.Config(discount=0.9, target_rate=0.05, learning_rate=3e-3, depth=0)
    state = fitted(dataset, zeros[None], config, plain(10.0), 3_000)
    (found,) = fqe.first_values(state, plain(10.0), zeros[:1], zeros[None, :1])
    np.testing.assert_allclose(found, 0.5 / 0.55, atol=0.05)
    assert abs(float(found[0]) - 1.0) > 0.04


def test_it_does_not_act():
    algorithm = fqe.make(fqe.Config(), Spec(1, 1), SCALE)
    with pytest.raises(TypeError, match="does not act"):
        algorithm.act(algorithm.init(jax.random.key(0)), jnp.zeros((1, 1)), jax.random.key(0))
