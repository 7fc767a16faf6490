"""The layers of U-Nets over time against XLA's own and against arithmetic by hand; properties of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.networks.temporal_unet import (
    Convolution,
    GroupNorm,
    LinearAttention,
    TemporalUNet,
    TrajectoryValue,
    Upsampling,
    check_horizon,
)
from diffcps.types import UserError

AXES = ("NWC", "WIO", "NWC")


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(("size", "stride", "length"), [(5, 1, 8), (3, 2, 8), (3, 2, 7), (3, 2, 1)])
def test_a_convolution_is_xlas(size, stride, length):
    layer, x = Convolution(3, 4, size, jax.random.key(0), stride), random(2, length, 3)
    kernel, half = layer.linear.weight.reshape(size, 3, 4), size // 2
    expected = jax.lax.conv_general_dilated(x, kernel, (stride,), [(half, half)], dimension_numbers=AXES)
    np.testing.assert_allclose(layer(x), expected + layer.linear.bias, atol=1e-5)


def test_upsampling_is_a_transposed_convolution():
    layer, x = Upsampling(3, jax.random.key(0)), random(2, 5, 3)
    weight = layer.linear.weight.reshape(4, 3, 3)
    expected = np.zeros((2, 12, 3))
    for i in range(5):  # each step is spread over four, from 2 i - 1 on
        for k in range(4):
            expected[:, 2 * i + k] += np.asarray(x[:, i] @ weight[k])
    np.testing.assert_allclose(layer(x), expected[:, 1:-1] + layer.linear.bias, atol=1e-5)


def test_group_norm_by_hand():
    x = random(2, 6, 16)
    found = np.asarray(GroupNorm(16)(x))
    for group in range(8):
        part = np.asarray(x[1, :, 2 * group : 2 * group + 2])
        expected = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
        np.testing.assert_allclose(found[1, :, 2 * group : 2 * group + 2], expected, atol=1e-5)


def test_attention_by_hand():
    layer, x = LinearAttention(8, jax.random.key(0)), random(5, 8)
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    query, key, value = np.split(np.asarray(normal @ layer.queries), 3, axis=1)
    out = np.zeros((5, 128))
    for head in range(4):
        part = slice(32 * head, 32 * head + 32)
        weight = np.exp(key[:, part]) / np.exp(key[:, part]).sum(axis=0)
        out[:, part] = query[:, part] / np.sqrt(32) @ (weight.T @ value[:, part])
    np.testing.assert_allclose(layer(x), x + layer.out(jnp.asarray(out, jnp.float32)), atol=1e-5)


@pytest.mark.parametrize(
    ("multipliers", "horizon", "attention"),
    [((1,), 3, False), ((1, 2), 2, False), ((1, 2), 6, True), ((1, 2, 4), 12, False)],
)
def test_plans_keep_their_shape(multipliers, horizon, attention):
    unet = TemporalUNet(5, 8, multipliers, jax.random.key(0), attention)
    check_horizon(horizon, multipliers)
    shape = jax.eval_shape(unet, random(2, 3, horizon, 5), jnp.zeros((2, 1), int)).shape
    assert shape == (2, 3, horizon, 5)


@pytest.mark.parametrize(("horizon", "hint"), [(6, "take 8,"), (1, "take 4,"), (13, "take 12,")])
def test_other_horizons_are_refused(horizon, hint):
    with pytest.raises(UserError, match=f"horizon is {horizon}: .* multiple of 4; {hint}"):
        check_horizon(horizon, (1, 2, 4))


def test_widths_that_make_no_groups_are_refused():
    with pytest.raises(UserError, match="4 channels, which do not make 8 equal groups"):
        TemporalUNet(5, 4, (1, 2), jax.random.key(0))


@pytest.mark.parametrize("horizon", [1, 4, 5, 32])
def test_a_value_is_a_number_at_every_horizon(horizon):
    network = TrajectoryValue(5, 8, (1, 4), horizon, jax.random.key(0))
    assert jax.eval_shape(network, random(2, 3, horizon, 5), jnp.int32(0)).shape == (2, 3)


@pytest.mark.parametrize("kind", ["unet", "value"])
def test_a_batch_is_its_trajectories_one_by_one(kind):
    network = (
        TemporalUNet(5, 8, (1, 2), jax.random.key(0), True)
        if kind == "unet"
        else TrajectoryValue(5, 8, (1, 4), 8, jax.random.key(0))
    )
    x, t = random(3, 8, 5), jnp.arange(3)
    np.testing.assert_allclose(
        jax.jit(lambda x, t: network(x, t))(x, t), jax.jit(jax.vmap(lambda x, t: network(x, t)))(x, t), atol=2e-6
    )


def test_what_happens_later_happens_later():
    """A bump far from both ends, moved by what one step of the deepest level stands for: the output moves with it."""
    unet = TemporalUNet(2, 8, (1, 2), jax.random.key(0))
    bump, t = random(4, 2), jnp.int32(3)

    run = jax.jit(lambda x: unet(x, t))

    def around(begin):
        return run(jnp.zeros((256, 2)).at[begin : begin + 4].set(bump))[begin - 6 : begin + 10]

    np.testing.assert_allclose(around(128), around(126), atol=1e-5)
    assert np.abs(around(128) - around(127)).max() > 1e-3  # half a step of the deepest level is another thing


def test_a_condition_is_seen():
    unet = TemporalUNet(5, 8, (1, 2), jax.random.key(0), condition_size=3)
    x, t = random(2, 8, 5), jnp.zeros(2, int)
    run = jax.jit(lambda x, t, condition: unet(x, t, condition))
    assert np.abs(run(x, t, jnp.ones((2, 3))) - run(x, t, jnp.zeros((2, 3)))).max() > 1e-3


def test_time_is_seen():
    unet, x = TemporalUNet(5, 8, (1, 2), jax.random.key(0)), random(2, 8, 5)
    assert np.abs(unet(x, jnp.array([0, 1])) - unet(x, jnp.array([0, 5])))[1].max() > 1e-3
