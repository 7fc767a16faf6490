"""IDQL against numbers recorded from the authors' program: pieces, three updates, actions (diffusion/README.md)."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import idql
from diffcps.diffusion.process import add_noise
from diffcps.diffusion.sampler import sample_ancestral, sample_clipped
from diffcps.diffusion.schedule import make_schedule
from diffcps.networks.critic import Critic, VNetwork
from diffcps.networks.norm import LayerNorm
from diffcps.networks.residual import ResidualDenoiser
from diffcps.types import Metrics, Real, Transition
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, after, replay, state_with
from tests.golden.weights import distance, linear, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("diffusion/idql")
CONFIG = idql.Config(
    width=32, actor_width=16, time_size=16, batch_size=16, num_candidates=16, actor_decay_updates=10, num_blocks=3
)
SCHEDULE = make_schedule("vp", 5)
NETWORKS = {"actor": "score", "target_actor": "target_score", "value": "value"} | {
    name: name for name in ("critic", "target_critic")
}
UPDATES = ("", "update2/", "update3/")
TOLERANCE = 2e-6
"""Of parameters; they agree to 9e-7."""
close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)


# --- Their weights as our networks ---


def denoiser(prefix: str, epsilon: float = 1e-6) -> ResidualDenoiser:
    def parts(network: ResidualDenoiser) -> list[Any]:
        blocks = [part for block in network.body.blocks for part in (block.norm, block.widen, block.narrow)]
        return [network.features.frequency, network.time, network.first, network.body.last, *blocks]

    shape = eqx.filter_eval_shape(ResidualDenoiser, SPEC, 16, 3, 16, jax.random.key(0), epsilon=epsilon)
    time = mlp(ARRAYS, [f"{prefix}/MLP_0.Dense_{i}" for i in (0, 1)], jax.nn.silu)
    first, last = (linear(ARRAYS, f"{prefix}/MLPResNet_0.Dense_{i}") for i in (0, 1))
    blocks = []
    for block in (f"{prefix}/MLPResNet_0.MLPResNetBlock_{i}" for i in range(3)):
        blocks += [layer_norm(f"{block}.LayerNorm_0", epsilon), *(linear(ARRAYS, f"{block}.Dense_{i}") for i in (0, 1))]
    frequency = jnp.asarray(ARRAYS[f"{prefix}/FourierFeatures_0.kernel"][:, 0])
    return eqx.tree_at(parts, shape, [frequency, time, first, last, *blocks])


def layer_norm(prefix: str, epsilon: float = 1e-6) -> LayerNorm:
    scale, bias = (jnp.asarray(ARRAYS[f"{prefix}.{name}"]) for name in ("scale", "bias"))
    return eqx.tree_at(lambda norm: (norm.scale, norm.bias), LayerNorm(scale.size, epsilon), (scale, bias))


def value_network(prefix: str) -> VNetwork:
    layers = [*(f"{prefix}/MLP_0.Dense_{i}" for i in (0, 1)), f"{prefix}/OutputVDense"]
    shape = eqx.filter_eval_shape(VNetwork, SPEC, (32, 32), jax.random.key(0), normed=True)
    parts = (layer_norm(f"{prefix}/MLP_0.LayerNorm_0"), mlp(ARRAYS, layers, jax.nn.relu))
    return eqx.tree_at(lambda value: (value.network.norm, value.network.network), shape, parts)


def critics(prefix: str) -> Critic:
    start = f"{prefix}/VmapStateActionValue_0"
    layers = [linear(ARRAYS, f"{start}.{name}") for name in ("MLP_0.Dense_0", "MLP_0.Dense_1", "Dense_0")]
    shape = eqx.filter_eval_shape(Critic, SPEC, (32, 32), jax.random.key(0), jax.nn.relu)
    return eqx.tree_at(lambda critic: critic.networks.layers, shape, tuple(layers))


@cache
def network(name: str, prefix: str = "") -> Any:
    """One of our networks as the record has it, before (no prefix) or after updates. Not to be called while tracing."""
    theirs = prefix + NETWORKS[name]
    kind = {"value": value_network, "critic": critics, "target_critic": critics}.get(name, denoiser)
    return kind(theirs)


def array(name: str) -> jax.Array:
    return jnp.asarray(ARRAYS[name])


def batch_of(update: str = "") -> Transition:
    return Transition(*(array(f"{update}batch/{name}") for name in Transition._fields))


def draws_of(update: str = "") -> idql.Draws:
    keep = np.unpackbits(ARRAYS[f"{update}actor_loss/dropout_keep"], axis=-1)[..., :16].astype(bool)
    return idql.Draws(array(f"{update}actor_loss/t"), array(f"{update}actor_loss/z"), jnp.asarray(keep))


# --- Pieces ---


def test_the_recorded_settings_are_ours():
    fields = {
        **{name: name for name in ("num_steps", "num_candidates", "expectile", "discount", "target_rate", "dropout")},
        **{name: name for name in ("actor_learning_rate", "value_learning_rate", "critic_learning_rate")},
        **{"actor_target_rate": "ema_rate", "actor_decay_steps": "actor_decay_updates", "blocks": "num_blocks"},
        **{"actor_weight_decay": "weight_decay", "batch_size": "batch_size"},
    }
    for theirs, ours in fields.items():
        np.testing.assert_allclose(ARRAYS[f"settings/{theirs}"], getattr(CONFIG, ours), rtol=1e-6, err_msg=ours)


def test_schedule():
    np.testing.assert_allclose(SCHEDULE.beta, ARRAYS["schedule/beta"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(SCHEDULE.alpha_bar, ARRAYS["schedule/alpha_bar"], rtol=0, atol=1e-7)


@eqx.filter_jit
def predicted(network: ResidualDenoiser) -> jax.Array:
    return network.given(array("batch/observation"), 5)(array("denoise/x"), array("denoise/t"))


def test_prediction_of_the_noise():
    tolerance = 3e-6
    for name, theirs in (("actor", "denoise/eps"), ("target_actor", "denoise/eps_of_target")):
        np.testing.assert_allclose(predicted(network(name)), ARRAYS[theirs], rtol=0, atol=tolerance)
    # Negative controls: PyTorch's epsilon, and sines before cosines.
    actor = network("actor")
    rows = actor.time.layers[0].weight
    turned = eqx.tree_at(lambda n: n.time.layers[0].weight, actor, jnp.roll(rows, 8, axis=0))
    for departure, least in ((denoiser("score", 1e-5), 2 * tolerance), (turned, 0.01)):
        assert np.max(np.abs(predicted(departure) - ARRAYS["denoise/eps"])) > least


def test_noisy_action_and_loss_of_the_behaviour_model():
    draws, batch, actor = draws_of(), batch_of(), network("actor")
    noisy = add_noise(SCHEDULE, batch.action, draws.t, draws.eps)
    np.testing.assert_allclose(noisy, ARRAYS["actor_loss/noisy_action"], rtol=0, atol=1e-6)

    @eqx.filter_jit
    def loss(kept):
        return idql.behaviour_loss(actor, SCHEDULE, batch, draws.t, draws.eps, kept)

    usual = loss(draws.keep / 0.9)
    close(usual, ARRAYS["actor_loss/loss"])
    # The factor on the units that are kept cancels in the normalisation that follows, but for its epsilon.
    close(loss(draws.keep / 0.5), ARRAYS["actor_loss/loss"])
    # Negative controls: without dropout, with that of another block, a mean over dimensions.
    others = (loss(jnp.ones((3, 16, 16))), loss(draws.keep[::-1] / 0.9), usual / 3)
    assert all(abs(float(other - ARRAYS["actor_loss/loss"])) > 1e-4 for other in others)


def test_value_and_critics():
    batch, before = batch_of(), {name: network(name) for name in NETWORKS}
    stepped = network("value", "after/")

    @eqx.filter_jit
    def pieces(networks: Networks, stepped: VNetwork):
        target_q = networks["target_critic"](batch.observation, batch.action)
        loss_v, v = idql.value_loss(networks["value"], networks["target_critic"], batch, 0.7)
        target = idql.critic_target(stepped, batch, 0.99)
        loss_q, q = idql.mean_critic_loss(networks["critic"], batch, target)
        return target_q, loss_v, v, stepped(batch.next_observation), target, loss_q, q

    names = ("value_loss/target_q", "value_loss/loss", "value_loss/v", "critic_loss/next_v_after_value_step")
    names = (*names, "critic_loss/target", "critic_loss/loss", "critic_loss/q")
    for name, ours in zip(names, pieces(before, stepped), strict=True):
        np.testing.assert_allclose(ours, ARRAYS[name], rtol=1e-5, atol=1e-5, err_msg=name)
    # Negative controls: V before its step in the target, the critics themselves in V's loss, no LayerNorm in V.
    *_, loss_q, _ = pieces(before, before["value"])
    assert abs(float(loss_q - ARRAYS["critic_loss/loss"])) > 1e-3
    online = pieces(before | {"target_critic": before["critic"]}, stepped)[1]
    assert abs(float(online - ARRAYS["value_loss/loss"])) > 1e-3
    raw = before["value"].network.network(batch.observation)[..., 0]
    assert np.max(np.abs(raw - ARRAYS["value_loss/v"])) > 1e-2


# --- Updates ---


@partial(jax.jit, static_argnames="decay")
def updates(networks: Networks, changes: dict[str, Real], decay: int) -> tuple[Networks, Metrics]:
    config = dataclasses.replace(CONFIG, actor_decay_updates=decay, **changes)
    state = state_with(idql.make(config, SPEC), **networks)
    batches, draws = (
        jax.tree.map(lambda *rows: jnp.stack(rows), *(of(update) for update in UPDATES)) for of in (batch_of, draws_of)
    )
    return replay(idql.make(config, SPEC), state, batches, draws)


@cache
def three(decay: int = 10, **changes: float) -> tuple[Networks, Metrics]:
    """The three updates; all changes of numbers share one program."""
    names = ("expectile", "discount", "target_rate", "ema_rate", "weight_decay", "actor_learning_rate")
    usual = {name: getattr(CONFIG, name) for name in names}
    networks = {name: network(name) for name in NETWORKS}
    return updates(networks, jax.tree.map(jnp.float32, usual | changes), decay)


def theirs(count: int, name: str) -> Any:
    return network(name, {1: "after/", 3: "update3/after/"}[count])


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("count", [1, 3])
def test_parameters(count, name):
    assert distance(after(three()[0], count, name), theirs(count, name)) < TOLERANCE
    assert distance(network(name), theirs(count, name)) > 20 * TOLERANCE


@pytest.mark.parametrize(("name", "key"), [("actor_loss", "actor/bc_loss"), ("value_loss", "value/loss")])
def test_losses(name, key):
    close(three()[1][key], [ARRAYS[f"{update}{name}/loss"] for update in UPDATES])


def test_losses_of_the_critics():
    expected = np.array([ARRAYS[f"{update}critic_loss/loss"] for update in UPDATES])
    np.testing.assert_allclose(three()[1]["critic/loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("part", ["actor", "value", "critic"])
def test_norms_of_the_gradients(part):
    # Adam hardly sees a factor on the loss: these tell a sum from a mean.
    expected = np.array([ARRAYS[f"{update}{part}_loss/grad_norm"] for update in UPDATES])
    np.testing.assert_allclose(three()[1][f"{part}/grad_norm"], expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"decay": 0}, "actor"),
        ({"actor_learning_rate": 3.1e-4}, "actor"),
        ({"expectile": 0.71}, "value"),
        ({"discount": 0.98}, "critic"),
        ({"target_rate": 0.006}, "target_critic"),
        ({"ema_rate": 0.0012}, "target_actor"),
    ],
    ids=str,
)
def test_small_departures_show_in_parameters(change, name):
    assert distance(after(three(**change)[0], 3, name), theirs(3, name)) > 3 * TOLERANCE


def test_the_records_decay_of_weights_is_too_small_to_show():
    # Three steps of 3e-4 * 1e-4 of a weight: the decay's size is held by tests/test_optim.py alone.
    usual, without = (after(three(**change)[0], 3, "actor") for change in ({}, {"weight_decay": 0.0}))
    assert 0.0 < distance(usual, without) < TOLERANCE
    assert distance(after(three(weight_decay=0.1)[0], 3, "actor"), theirs(3, "actor")) > 3 * TOLERANCE


# --- Acting ---


def noise_of_acting() -> jax.Array:
    """(steps, observations, candidates, action): x_T, then the noises in the order of use but for the last."""
    start, z = ARRAYS["act/start"], np.moveaxis(ARRAYS["act/z"], 1, 0)
    return jnp.asarray(np.concatenate([start[None], z[:-1]]))


@eqx.filter_jit
def candidates(sampler, policy: ResidualDenoiser) -> jax.Array:
    return sampler(SCHEDULE, policy.given(array("act/observation")[:, None], 5), noise_of_acting())


def test_candidates():
    close(candidates(sample_clipped, network("target_actor")), ARRAYS["act/candidates"])
    close(ARRAYS["act/chain"][:, -1], ARRAYS["act/candidates"])

    def clipped_at_the_end(schedule, denoise, noise):
        return jnp.clip(sample_clipped(schedule, denoise, noise, 1e6), -1.0, 1.0)

    # Negative controls: the model that is trained, a clip at the end alone, DDPM's posterior with x_0 clipped.
    others = [(sample_clipped, network("actor"))]
    others += [(sampler, network("target_actor")) for sampler in (clipped_at_the_end, sample_ancestral)]
    for sampler, policy in others:
        assert np.max(np.abs(candidates(sampler, policy) - ARRAYS["act/candidates"])) > 0.1


def test_action(monkeypatch):
    monkeypatch.setattr(idql, "draw_noise", lambda *_: noise_of_acting())
    algorithm = idql.make(CONFIG, SPEC)
    found = {}

    def choose(candidates, q, v, config, key, choose=idql.choose):
        found["q"] = q
        return choose(candidates, q, v, config, key)

    monkeypatch.setattr(idql, "choose", choose)

    @jax.jit
    def act(networks: Networks, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        action = algorithm.act(state_with(algorithm, **networks), observation, jax.random.key(0))
        return action, found.pop("q")

    networks = {name: network(name) for name in NETWORKS}
    action, q = act(networks, array("act/observation"))
    np.testing.assert_allclose(q, ARRAYS["act/q"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.argmax(q, axis=-1), ARRAYS["act/index"])
    close(action, ARRAYS["act/action"])
    # Negative control: the critics themselves in the place of their targets.
    _, by_critics = act(networks | {"target_critic": networks["critic"]}, array("act/observation"))
    assert np.max(np.abs(by_critics - ARRAYS["act/q"])) > 1e-2
