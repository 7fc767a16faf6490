"""Draws as inputs: taken in their order, each number once, and no draw that escapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.deploy.draws import Draw, Given, trace
from diffcps.types import UserError


def act(state, observation, key):
    """Two draws of one law, and one of the other between them."""
    first, second, third = jax.random.split(key, 3)
    noise = jax.random.normal(first, (2,))
    chosen = jax.random.gumbel(second, (3,))
    return state * observation + noise + jnp.sum(chosen) + 10.0 * jax.random.normal(third, (2,))


STATE, OBSERVATION = jnp.float32(3.0), jnp.array([1.0, 2.0])


def test_each_number_is_used_once_in_its_order():
    traced = trace(act, STATE, 2)
    assert traced.draws == (Draw("noise", (2,)), Draw("gumbel", (3,)), Draw("noise", (2,)))
    assert traced.laws == ("noise", "gumbel") and (traced.size("noise"), traced.size("gumbel")) == (4, 3)
    given: Given = {"noise": jnp.array([0.1, 0.2, 1.0, 2.0]), "gumbel": jnp.array([0.0, 0.0, 0.5])}
    np.testing.assert_allclose(traced.act(OBSERVATION, given), [3 + 0.1 + 0.5 + 10, 6 + 0.2 + 0.5 + 20], rtol=1e-6)


def test_the_numbers_of_a_key_give_what_the_key_gives():
    traced, key = trace(act, STATE, 2), jax.random.key(7)
    numbers = traced.numbers_of(jax.random.clone(key))
    np.testing.assert_allclose(traced.act(OBSERVATION, numbers), act(STATE, OBSERVATION, key), rtol=1e-6)


def in_a_loop(key):
    def add(index, total):
        return total + jax.random.normal(jax.random.fold_in(key, index), (2,))

    return jax.lax.fori_loop(0, 3, add, jnp.zeros(2))


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.uniform(key, (2,)),
        lambda key: jax.random.laplace(key, (2,)),
        lambda key: jax.lax.fori_loop(
            0, 3, lambda i, x: x + jax.random.normal(jax.random.fold_in(key, i), (2,)), jnp.zeros(2)
        ),
    ],
    ids=["uniform", "laplace", "in a loop"],
)
def test_a_draw_that_cannot_be_given_is_refused_by_name(draw):
    with pytest.raises(UserError, match="draws by `"):
        trace(lambda state, observation, key: observation + draw(key), STATE, 2)
