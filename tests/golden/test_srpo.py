"""SRPO against numbers recorded from the authors' program: pieces, and three updates a stage (diffusion/README.md)."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import srpo
from diffcps.diffusion.vp_sde import alpha_and_std, perturbed
from diffcps.networks.critic import VNetwork
from diffcps.networks.gaussian import Deterministic
from diffcps.networks.norm import LayerNorm
from diffcps.networks.residual import ContinuousDenoiser, fixed_features
from diffcps.types import Metrics, Transition, UpdateIndex
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, networks_of, state_with
from tests.golden.weights import distance, ensemble, linear, mlp, observation_first

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("diffusion/srpo")
CONFIG = srpo.Config(
    width=32,
    behaviour_width=24,
    num_blocks=2,
    num_features=64,
    time_width=16,
    batch_size=16,
    behaviour_batch_size=16,
    dropout=0.1,
)
UPDATES = ("", "update2/", "update3/")
TOLERANCE = 1e-6
"""Of parameters."""
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


# --- Their weights as our networks ---


def denoiser(prefix: str) -> ContinuousDenoiser:
    def parts(network: ContinuousDenoiser) -> list[Any]:
        blocks = [part for block in network.body.blocks for part in (block.norm, block.widen, block.narrow)]
        return [network.time, network.first, network.body.last, *blocks]

    shape = eqx.filter_eval_shape(ContinuousDenoiser, SPEC, CONFIG.behaviour_width, 2, 64, 16, jax.random.key(0))
    time = mlp(ARRAYS, [f"{prefix}/cond_model.{i}" for i in (0, 2)], shape.body.activation)
    blocks: list[Any] = []
    for block in (f"{prefix}/main.blocks.{i}" for i in range(2)):
        scale, bias = (jnp.asarray(ARRAYS[f"{block}.layer_norm.{name}"]) for name in ("weight", "bias"))
        norm = eqx.tree_at(lambda norm: (norm.scale, norm.bias), LayerNorm(scale.size, 1e-5), (scale, bias))
        blocks += [norm, *(linear(ARRAYS, f"{block}.{name}") for name in ("fc1", "fc2"))]
    first, last = linear(ARRAYS, f"{prefix}/main.fc"), linear(ARRAYS, f"{prefix}/main.out_fc")
    return eqx.tree_at(parts, shape, [time, first, last, *blocks])


def critics(prefix: str) -> Any:
    critic = ensemble(*(mlp(ARRAYS, [f"{prefix}/q{j}.{i}" for i in (0, 2, 4)], jax.nn.relu) for j in (1, 2)))
    return observation_first(critic, SPEC.action_size)


def value_network(prefix: str) -> VNetwork:
    shape = eqx.filter_eval_shape(VNetwork, SPEC, (32, 32), jax.random.key(0))
    layers = mlp(ARRAYS, [f"{prefix}/v.{i}" for i in (0, 2, 4)], jax.nn.relu)
    return eqx.tree_at(lambda value: value.network, shape, layers)


def policy_network(prefix: str) -> Deterministic:
    shape = eqx.filter_eval_shape(Deterministic, SPEC, (32, 32), jax.random.key(0))
    layers = mlp(ARRAYS, [f"{prefix}/net.{i}" for i in (0, 2, 4)], jax.nn.relu)
    return eqx.tree_at(lambda policy: policy.network, shape, layers)


def array(name: str) -> jax.Array:
    return jnp.asarray(ARRAYS[name])


def batch_of(update: str = "") -> Transition:
    reward, terminal = (array(f"{update}batch/{name}")[:, 0] for name in ("reward", "terminal"))
    observation, action, following = (
        array(f"{update}batch/{name}") for name in ("observation", "action", "next_observation")
    )
    return Transition(observation, action, reward, following, terminal)


def behaviour_draws(update: str = "") -> srpo.BehaviourDraws:
    keep = np.unpackbits(ARRAYS[f"{update}behavior_loss/dropout_keep"], axis=-1)[..., : CONFIG.behaviour_width].astype(
        bool
    )
    return srpo.BehaviourDraws(array(f"{update}behavior_loss/t"), array(f"{update}behavior_loss/z"), jnp.asarray(keep))


def policy_draws(update: str = "", group: str = "policy_loss") -> srpo.Draws:
    return srpo.Draws(array(f"{update}{group}/t"), array(f"{update}{group}/z"))


FREQUENCY = array("behavior/embed.0.W")
BATCH = batch_of()
BEHAVIOUR, VALUE, POLICY = denoiser("behavior"), value_network("value"), policy_network("policy")
CRITIC, TARGET_CRITIC = critics("critic"), critics("target_critic")


# --- Pieces ---


def test_the_noise_model():
    alpha, std = alpha_and_std(array("schedule/t"))
    close(alpha, ARRAYS["schedule/alpha"])
    close(std, ARRAYS["schedule/std"])
    features = fixed_features(array("denoise/t"), FREQUENCY)
    close(features, ARRAYS["denoise/embed"])
    close(BEHAVIOUR(array("denoise/x"), BATCH.observation, features), ARRAYS["denoise/eps"])


def test_the_behaviour_models_loss():
    t, z, keep = behaviour_draws()
    close(perturbed(BATCH.action, t, z), ARRAYS["behavior_loss/perturbed"])
    loss = srpo.behaviour_loss(BEHAVIOUR, FREQUENCY, BATCH, t, z, keep / (1.0 - CONFIG.dropout))
    close(loss, ARRAYS["behavior_loss/loss"])
    # Negative control: without dropout it is another.
    assert abs(srpo.behaviour_loss(BEHAVIOUR, FREQUENCY, BATCH, t, z) - loss) > 1e-3


def test_the_policys_loss_and_the_gradients_in_it():
    action = POLICY(BATCH.observation)
    close(action, ARRAYS["policy_loss/action"])
    close(srpo.q_gradient(TARGET_CRITIC, BATCH.observation, action, False), ARRAYS["policy_loss/q_gradient"])
    arguments = BEHAVIOUR, FREQUENCY, TARGET_CRITIC, BATCH
    loss, _ = srpo.policy_loss(POLICY, *arguments, policy_draws(), CONFIG)
    close(loss, ARRAYS["policy_loss/loss"])
    normalised = dataclasses.replace(CONFIG, normalise_guidance=True)
    loss, _ = srpo.policy_loss(POLICY, *arguments, policy_draws(group="policy_loss_other_norm"), normalised)
    close(loss, ARRAYS["policy_loss_other_norm/loss"])
    # Negative controls: the smaller Q in the place of the mean, and the online critics.
    other = jax.grad(lambda action: jnp.sum(jnp.min(TARGET_CRITIC(BATCH.observation, action), axis=0)))(action)
    assert np.abs(other - ARRAYS["policy_loss/q_gradient"]).max() > 0.1
    online = srpo.q_gradient(CRITIC, BATCH.observation, action, False)
    assert np.abs(online - ARRAYS["policy_loss/q_gradient"]).max() > 1e-3


def test_the_values():
    loss, v = srpo.value_loss(VALUE, TARGET_CRITIC, BATCH, CONFIG.expectile)
    close(v, ARRAYS["iql/v"][:, 0])
    close(loss, ARRAYS["iql/v_loss"])
    close(VALUE(BATCH.next_observation), ARRAYS["iql/next_v"][:, 0])
    loss, q = srpo.mean_critic_loss(CRITIC, BATCH, array("iql/target")[:, 0])
    close(q, np.stack([ARRAYS["iql/q1"], ARRAYS["iql/q2"]])[..., 0])
    close(loss, ARRAYS["iql/q_loss"])


# --- Three updates of each stage ---


@cache
def three(stage: int) -> tuple[list[Networks], list[Metrics]]:
    """Networks after each update of a stage, all from the weights before, and the metrics."""
    algorithm = srpo.make(CONFIG, SPEC)
    parts = {"value": VALUE, "critic": CRITIC, "target_critic": TARGET_CRITIC, "actor": POLICY}
    state = state_with(algorithm, behaviour=BEHAVIOUR, frequency=FREQUENCY, **parts)

    @jax.jit
    def run(state, batch, draws):
        return algorithm.stages[stage].update(state, batch, draws, UpdateIndex(jnp.asarray(0)))

    networks, metrics = [], []
    for update in UPDATES:
        draws = (behaviour_draws, lambda _: (), policy_draws)[stage](update)
        state, reported = run(state, batch_of(update), draws)
        networks.append(networks_of(state))
        metrics.append(reported)
    return networks, metrics


@pytest.mark.parametrize(
    ("stage", "ours", "theirs"),
    [
        (0, "behaviour/loss", "behavior_loss/loss"),
        (0, "behaviour/grad_norm", "behavior_loss/grad_norm"),
        (1, "value/loss", "iql/v_loss"),
        (1, "critic/loss", "iql/q_loss"),
        (1, "value/grad_norm", "iql/v_grad_norm"),
        (1, "critic/grad_norm", "iql/q_grad_norm"),
        (2, "actor/loss", "policy_loss/loss"),
        (2, "actor/grad_norm", "policy_loss/grad_norm"),
    ],
)
def test_losses_and_gradients(stage, ours, theirs):
    for metrics, update in zip(three(stage)[1], UPDATES, strict=True):
        close(metrics[ours], ARRAYS[f"{update}{theirs}"])


@pytest.mark.parametrize(
    ("stage", "name", "first", "third", "read"),
    [
        (0, "behaviour", "behavior_loss/after", "update3/after/behavior", denoiser),
        (1, "value", "iql/after/value", "update3/after/value", value_network),
        (1, "critic", "iql/after/critic", "update3/after/critic", critics),
        (1, "target_critic", "iql/after/target_critic", "update3/after/target_critic", critics),
        (2, "actor", "policy_loss/after", "update3/after/policy", policy_network),
    ],
)
def test_parameters(stage, name, first, third, read):
    networks, _ = three(stage)
    assert distance(networks[0][name], read(first)) < TOLERANCE
    assert distance(networks[2][name], read(third)) < TOLERANCE
    assert distance(read(first), read(third)) > 10 * TOLERANCE


def test_the_weight_decay_shows_in_the_third_update():
    config = dataclasses.replace(CONFIG, weight_decay=0.0)
    algorithm = srpo.make(config, SPEC)
    state = state_with(algorithm, behaviour=BEHAVIOUR, frequency=FREQUENCY)
    for update in UPDATES:
        state, _ = jax.jit(algorithm.stages[0].update)(
            state, batch_of(update), behaviour_draws(update), UpdateIndex(jnp.asarray(0))
        )
    assert distance(state.behaviour.model, denoiser("update3/after/behavior")) > TOLERANCE
