"""QGPO against numbers recorded from the authors' program: pieces, chains, and updates (diffusion/README.md)."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import qgpo
from diffcps.diffusion.dpm_solver import Prediction
from diffcps.diffusion.vp_sde import alpha_and_std, log_alpha, perturbed
from diffcps.networks.critic import Critic
from diffcps.networks.residual import fixed_features
from diffcps.networks.score import EnergyNetwork, ScoreUNet
from diffcps.policies.score import Chain, chain_through, denoise_by, even_chain, sample_actions, sample_chain
from diffcps.rl.bellman import mean_critic_loss
from diffcps.rl.improvement import softmax_value
from diffcps.types import Metrics, Real, Transition, UpdateIndex
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, networks_of, state_with
from tests.golden.weights import distance, ensemble, linear, mlp, observation_first

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("diffusion/qgpo")
SCALE = 3.0
CONFIG = qgpo.Config(width=32, behaviour_width=32, batch_size=16, guidance_scale=SCALE)
UPDATES = ("", "update2/", "update3/")
TOLERANCE = 1e-6
"""Of parameters."""
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


# --- Their weights as our networks ---

BLOCKS = ("down_block1", "down_block2", "down_block3", "middle1", "up_block3", "up_block2")


def score(prefix: str) -> ScoreUNet:
    def parts(network: ScoreUNet) -> list[Any]:
        blocks = (*network.down, network.middle, *network.up)
        of_blocks = (part for block in blocks for part in (block.first, block.condition, block.second, block.skip))
        return [
            network.embedding,
            network.time,
            network.observation,
            network.last,
            *(part for part in of_blocks if part is not None),
        ]

    shape = eqx.filter_eval_shape(ScoreUNet, SPEC, (32, 16, 8), 32, 8, jax.random.key(0))
    layers = ["embed.1", "pre_sort_condition.0.dense", "last"]
    layers += [f"{block}.{layer}" for block in BLOCKS for layer in ("dense1.0", "time_mlp.1", "dense2.0", "modify_x")]
    there = [f"{prefix}/{layer}" for layer in layers if f"{prefix}/{layer}.weight" in ARRAYS]
    embedding = mlp(ARRAYS, [f"{prefix}/sort_t.{i}" for i in (0, 2)], jax.nn.silu)
    return eqx.tree_at(parts, shape, [embedding, *(linear(ARRAYS, name) for name in there)])


def critics(prefix: str) -> Critic:
    critic = ensemble(*(mlp(ARRAYS, [f"{prefix}/q{j}.{i}" for i in (0, 2, 4, 6)], jax.nn.relu) for j in (1, 2)))
    return observation_first(critic, SPEC.action_size)


def energy(prefix: str) -> EnergyNetwork:
    """Where the record leaves the last bias out, it is zero."""
    arrays = {f"{prefix}/qt.8.bias": np.zeros(1, np.float32)} | ARRAYS
    network = mlp(arrays, [f"{prefix}/qt.{i}" for i in (0, 2, 4, 6, 8)], jax.nn.silu)
    shape = eqx.filter_eval_shape(EnergyNetwork, SPEC, (32,) * 4, 32, jax.random.key(0))
    return eqx.tree_at(
        lambda energy: (energy.network, energy.time), shape, (network, linear(ARRAYS, f"{prefix}/embed.1"))
    )


def array(name: str) -> jax.Array:
    return jnp.asarray(ARRAYS[name])


def batch_of(update: str = "") -> Transition:
    reward, terminal = (array(f"{update}batch/{name}")[:, 0] for name in ("reward", "terminal"))
    observation, action, following = (
        array(f"{update}batch/{name}") for name in ("observation", "action", "next_observation")
    )
    return Transition(observation, action, reward, following, terminal)


def draws_of(group: str) -> qgpo.Draws:
    return qgpo.Draws(array(f"{group}/t"), array(f"{group}/z"))


BATCH = batch_of()
BEHAVIOUR, GUIDANCE = score("behavior"), energy("guidance")
FREQUENCY, GUIDANCE_FREQUENCY = array("behavior/embed.0.W"), array("guidance/embed.0.W")
CRITIC, TARGET_CRITIC = critics("critic"), critics("target_critic")
SUPPORT, NEXT_SUPPORT = array("support/action"), array("next_support/action")


# --- Pieces ---


@eqx.filter_jit
def evaluate(network: ScoreUNet | EnergyNetwork, x: jax.Array, observation: jax.Array, features: jax.Array):
    return network(x, observation, features)


def test_the_process_and_the_behaviour_model():
    t = array("schedule/t")
    alpha, std = alpha_and_std(t)
    close(alpha, ARRAYS["schedule/alpha"])
    close(std, ARRAYS["schedule/std"])
    close(log_alpha(t), ARRAYS["schedule/log_alpha"])
    close(log_alpha(t) - jnp.log(std), ARRAYS["schedule/lam"])
    features = fixed_features(array("denoise/t"), FREQUENCY)
    close(features, ARRAYS["denoise/embed"])
    h = evaluate(BEHAVIOUR, array("denoise/x"), BATCH.observation, features)
    close(h, ARRAYS["denoise/h"])
    close(h / alpha_and_std(array("denoise/t"))[1][:, None], ARRAYS["denoise/score"], rtol=2e-5)  # std down to 0.01


def test_the_behaviour_models_loss():
    t, z = draws_of("behavior_loss")
    close(perturbed(BATCH.action, t, z), ARRAYS["behavior_loss/perturbed"])
    close(jax.jit(qgpo.behaviour_loss)(BEHAVIOUR, FREQUENCY, BATCH, t, z), ARRAYS["behavior_loss/loss"])


def test_the_target_of_the_critics():
    energies = qgpo.q_of(TARGET_CRITIC, BATCH.next_observation, NEXT_SUPPORT)
    close(energies, ARRAYS["q/next_energy"])
    close(softmax_value(energies, CONFIG.alpha_q), ARRAYS["q/next_value"][:, 0])

    def target(critic: Critic = TARGET_CRITIC, alpha_q: Real = CONFIG.alpha_q) -> jax.Array:
        return qgpo.critic_target(critic, BATCH, NEXT_SUPPORT, alpha_q, CONFIG.discount)

    theirs = ARRAYS["q/target"][:, 0]
    close(target(), theirs)
    loss, q = mean_critic_loss(CRITIC, BATCH, target())
    close(q, np.stack([ARRAYS["q/q1"], ARRAYS["q/q2"]])[..., 0])
    close(loss, ARRAYS["q/loss"])
    # Negative controls: the guidance's alpha in the place of alpha_q, and the online critics.
    assert np.abs(target(alpha_q=CONFIG.alpha) - theirs).max() > 0.3
    assert np.abs(target(CRITIC) - theirs).max() > 1.0


def test_the_guidances_loss():
    t, z = draws_of("cep")
    times = jnp.broadcast_to(t[:, None], z.shape[:2])
    close(perturbed(SUPPORT, times, z), ARRAYS["cep/perturbed"])
    moved = critics("q/after/target_critic")  # the targets after their step
    close(qgpo.q_of(moved, BATCH.observation, SUPPORT), ARRAYS["cep/energy"])
    label = qgpo.labels_of(moved, BATCH.observation, SUPPORT, CONFIG.alpha)
    close(label, ARRAYS["cep/label"])
    arguments = GUIDANCE, GUIDANCE_FREQUENCY, BATCH.observation, SUPPORT
    close(qgpo.contrastive_loss(*arguments, label, qgpo.Draws(t, z)), ARRAYS["cep/loss"])
    features = fixed_features(t, GUIDANCE_FREQUENCY)[:, None]
    close(GUIDANCE(array("cep/perturbed"), BATCH.observation[:, None], features), ARRAYS["cep/logits"])
    # Negative controls: the targets before their step, and the inverse temperature of the critics' targets.
    before = qgpo.labels_of(TARGET_CRITIC, BATCH.observation, SUPPORT, CONFIG.alpha)
    assert np.abs(before - ARRAYS["cep/label"]).max() > 1e-3
    other = qgpo.labels_of(moved, BATCH.observation, SUPPORT, CONFIG.alpha_q)
    assert np.abs(other - ARRAYS["cep/label"]).max() > 0.1


def test_the_guided_score():
    x, t = array("guided/x"), array("guided/t")
    features, std = fixed_features(t, GUIDANCE_FREQUENCY), alpha_and_std(t)[1][:, None]
    close(evaluate(GUIDANCE, x, BATCH.observation, features), ARRAYS["guided/energy"][:, 0])
    gradient = jax.jit(partial(qgpo.energy_gradient, GUIDANCE))(x, BATCH.observation, features)
    close(SCALE * gradient, ARRAYS["guided/guidance_with_scale"])
    h = evaluate(BEHAVIOUR, x, BATCH.observation, fixed_features(t, FREQUENCY))
    close(-h - std * SCALE * gradient, ARRAYS["guided/eps"])


# --- Chains ---


def test_support_actions():
    both = jnp.stack([BATCH.observation, BATCH.next_observation])
    noise = jnp.stack([array("support/start"), array("next_support/start")])
    chain = even_chain(CONFIG.num_steps, 2, "data")
    action, following = jax.jit(partial(sample_actions, BEHAVIOUR, FREQUENCY, chain))(both, noise)
    close(action, SUPPORT)
    close(following, NEXT_SUPPORT)
    assert np.abs(action).max() > 1.05  # they are not clipped


@partial(jax.jit, static_argnums=0)
def by_chain(predicts: Prediction, constants: Any, start: jax.Array, scale: jax.Array) -> jax.Array:
    """Guided actions by a chain that is made of the given constants."""
    solver, *of_process = constants
    chain = Chain(solver, predicts, *of_process)
    denoise = denoise_by(BEHAVIOUR, FREQUENCY, chain, BATCH.observation)
    denoise = qgpo.guided(denoise, GUIDANCE, GUIDANCE_FREQUENCY, chain, BATCH.observation, scale)
    return sample_chain(chain, denoise, start)


def guided_actions(t: np.ndarray, orders: tuple[int, ...], predicts: Prediction, scale: float = SCALE) -> np.ndarray:
    """From the recorded noise of the chain of an even number of calls."""
    solver, predicts, *of_process = chain_through(t, orders, predicts)
    return np.asarray(by_chain(predicts, (solver, *of_process), array("guided_sample_even/start"), jnp.float32(scale)))


@pytest.mark.parametrize("group", ["guided_sample", "guided_sample_even"])
def test_the_grid_of_a_chain(group):
    steps, orders = int(ARRAYS[f"{group}/steps"]), tuple(map(int, ARRAYS[f"{group}/orders"]))
    chain = even_chain(steps, 2, "data")
    np.testing.assert_allclose(chain.t, ARRAYS[f"{group}/network_times"], rtol=0, atol=2e-7)
    np.testing.assert_array_equal(np.diff(np.append(np.flatnonzero(chain.solver.starts), steps)), orders)


def test_guided_actions():
    orders, theirs = (2, 2, 2, 2, 1, 1), ARRAYS["guided_sample_even/action"]
    t = np.linspace(1.0, 1e-3, 11)
    close(guided_actions(t, orders, "data"), theirs)
    # Negative controls: another scale, no two steps of order 1 at the end, the solver for noise.
    assert np.abs(guided_actions(t, orders, "data", 1.0) - theirs).max() > 0.5
    assert np.abs(guided_actions(t, (2,) * 5, "data") - theirs).max() > 0.3
    assert np.abs(guided_actions(t, orders, "noise") - theirs).max() > 0.3


def initial_state() -> qgpo.State:
    frequencies = {"frequency": FREQUENCY, "guidance_frequency": GUIDANCE_FREQUENCY}
    networks = {"behaviour": BEHAVIOUR, "critic": CRITIC, "target_critic": TARGET_CRITIC, "guidance": GUIDANCE}
    return state_with(qgpo.make(CONFIG, SPEC), **networks, **frequencies)


def test_acting_is_the_guided_chain_cut_off_at_the_box(monkeypatch):
    state = initial_state()
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: array("guided_sample/start"))
    action = jax.jit(qgpo.make(CONFIG, SPEC).act)(state, BATCH.observation, jax.random.key(0))
    theirs = ARRAYS["guided_sample/action"]
    close(action, np.clip(theirs, -1.0, 1.0))
    assert 0.5 < np.mean(np.abs(theirs) < 1.0) < 0.9  # what lies within is compared, and some does not


# --- Updates: one of the behaviour model, three of critics and guidance ---


@cache
def updated(stage: int) -> tuple[list[Networks], list[Metrics]]:
    """Networks after each recorded update of a stage, from the weights before, and the metrics."""

    @jax.jit
    def run(state, batch, draws):
        made = qgpo.make(CONFIG, SPEC)
        return made.stages[stage].update(state, batch, draws, UpdateIndex(jnp.asarray(0)))

    state, networks, metrics = initial_state(), [], []
    for update in UPDATES if stage else UPDATES[:1]:
        batch: Any = batch_of(update)
        if stage:
            support = (array(f"{update}{group}/action") for group in ("support", "next_support"))
            batch = qgpo.Supported(batch, qgpo.Support(*support))
        state, reported = run(state, batch, draws_of(f"{update}cep" if stage else "behavior_loss"))
        networks.append(networks_of(state))
        metrics.append(reported)
    return networks, metrics


@pytest.mark.parametrize(
    ("stage", "ours", "theirs"),
    [
        (0, "behaviour/loss", "behavior_loss/loss"),
        (0, "behaviour/grad_norm", "behavior_loss/grad_norm"),
        (1, "critic/loss", "q/loss"),
        (1, "critic/grad_norm", "q/grad_norm"),
        (1, "guidance/loss", "cep/loss"),
        (1, "guidance/grad_norm", "cep/grad_norm"),
    ],
)
def test_losses_and_gradients(stage, ours, theirs):
    for metrics, update in zip(updated(stage)[1], UPDATES, strict=False):
        close(metrics[ours], ARRAYS[f"{update}{theirs}"])


def test_parameters_of_the_behaviour_model():
    after = score("behavior_loss/after")
    assert distance(updated(0)[0][0]["behaviour"], after) < TOLERANCE
    assert distance(BEHAVIOUR, after) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "first", "third"),
    [
        ("critic", "q/after/critic", "update3/after/critic"),
        ("target_critic", "q/after/target_critic", "update3/after/target_critic"),
        ("guidance", "cep/after/guidance", "update3/after/guidance"),
    ],
)
def test_parameters(name, first, third):
    networks, _ = updated(1)
    read = energy if name == "guidance" else critics
    for ours, theirs in ((networks[0][name], read(first)), (networks[2][name], read(third))):
        if name == "guidance":  # its last bias has no gradient but for rounding, and is not recorded
            ours = eqx.tree_at(lambda energy: energy.network.layers[-1].bias, ours, replace_fn=jnp.zeros_like)
        assert distance(ours, theirs) < TOLERANCE
    assert distance(read(first), read(third)) > 10 * TOLERANCE
