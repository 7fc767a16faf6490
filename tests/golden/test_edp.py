"""EDP against numbers recorded from the authors' program: pieces, updates, actions (diffusion/README.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffcps import optim
from diffcps.algorithms import edp
from diffcps.diffusion import sampler
from diffcps.diffusion.schedule import Schedule, log_alpha_between, make_schedule
from diffcps.networks.critic import Critic, VNetwork
from diffcps.networks.denoiser import Denoiser
from diffcps.networks.gaussian import log_density
from diffcps.networks.mlp import mish
from diffcps.rl.improvement import normalised_q_loss
from diffcps.rl.regression import value_loss
from diffcps.types import Algorithm, Metrics, Real, Transition
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, after, replay, state_with
from tests.golden.weights import distance, ensemble, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("diffusion/edp")
CONFIG = edp.Config(width=32, depth=2, batch_size=16, max_grad_norm=1.0, crr_temperature=0.5, ema_start=0, ema_every=1)
DPM = dataclasses.replace(CONFIG, sampler="dpm", num_steps=1000, num_candidates=20)
UPDATES = ("", "update2/", "update3/")
TOLERANCE = 5e-6
"""Of parameters: Adam makes of the rounding of the smallest gradients, which processors differ in, 1 % of its rate."""
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", autouse=True)
def looped_chains() -> Iterator[None]:
    """Chains of 100 steps as loops, which compile sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "UNROLL", 1)
        yield


# --- Their weights as our networks ---


def array(name: str) -> jax.Array:
    return jnp.asarray(ARRAYS[name])


def denoiser(prefix: str, endpoint: bool = False) -> Denoiser:
    """Theirs reads [s, x, time] and cosines before sines, ours [x, time, s] and sines first."""
    time = mlp(ARRAYS, [f"{prefix}/TimeEmbedding_0.Dense_{i}" for i in (0, 1)], mish)
    body = mlp(ARRAYS, [f"{prefix}/Dense_{i}" for i in range(3)], mish)
    first = body.layers[0].weight
    rows = [first[5:], first[:5]]
    shape = eqx.filter_eval_shape(Denoiser, SPEC, 32, 2, 16, jax.random.key(0), endpoint=endpoint)
    theirs = eqx.tree_at(lambda network: (network.time, network.body), shape, (time, body))
    return eqx.tree_at(
        lambda network: (network.time.layers[0].weight, network.body.layers[0].weight),
        theirs,
        (jnp.roll(time.layers[0].weight, 8, axis=0), jnp.concatenate(rows)),
    )


def critics(prefix: str) -> Critic:
    """The two stored as PREFIXq1 and PREFIXq2."""
    return ensemble(*(mlp(ARRAYS, [f"{prefix}q{j}/Dense_{i}" for i in range(3)], mish) for j in (1, 2)))


def value_network(prefix: str) -> VNetwork:
    layers = mlp(ARRAYS, [f"{prefix}/Dense_{i}" for i in range(3)], mish)
    shape = eqx.filter_eval_shape(VNetwork, SPEC, (32, 32), jax.random.key(0), activation=mish)
    return eqx.tree_at(lambda value: value.network, shape, layers)


@cache
def network(name: str, prefix: str = "") -> Any:
    """One of our networks as the record has it, before (no prefix) or after updates. Not to be called while tracing."""
    return {
        "actor": lambda: denoiser(f"{prefix}policy"),
        "target_actor": lambda: denoiser(f"{prefix}target_policy"),
        "critic": lambda: critics(prefix),
        "target_critic": lambda: critics(f"{prefix}target_"),
        "value": lambda: value_network(f"{prefix}value"),
    }[name]()


def recorded_schedule() -> Schedule:
    """Their constants of T = 100, which are made in float32; ours are made in float64."""
    names = ("beta", "alpha_bar", "posterior_x0_weight", "posterior_xt_weight")
    fields = {name: ARRAYS[f"schedule/{name}"] for name in names}
    return Schedule(**fields, posterior_std=np.exp(0.5 * ARRAYS["schedule/posterior_log_variance_clipped"]))


SCHEDULE, OURS, OF_DPM = recorded_schedule(), make_schedule("linear_rate", 100), make_schedule("linear_rate", 1000)


def batch_of(update: str = "") -> Transition:
    return Transition(*(array(f"{update}batch/{name}") for name in Transition._fields))


def draws_of(kind: str, update: str = "") -> edp.Draws:
    """What one update of a kind drew. Critics step as in td3 with crr, and without any draw with iql."""
    chain = f"{update}td3/"
    noise = jnp.concatenate([array(f"{chain}next_start")[None], array(f"{chain}next_z")[:-1]])
    return edp.Draws(
        t=array(f"{update}{kind}/t"),
        eps=array(f"{update}{kind}/z"),
        next_noise=noise[:, :, None, :],
        maximise_first=array(f"{chain}coin") > 0.5,
        sample_noise=jnp.swapaxes(array("crr/sample_z"), 0, 1),
    )


BATCH = batch_of()


# --- Pieces ---


def test_the_recorded_settings_are_ours():
    fields = {
        **{name: name for name in ("num_steps", "max_grad_norm", "discount", "target_rate", "batch_size", "time_size")},
        **{"alpha": "q_weight", "layers": "depth", "learning_rate": "actor_learning_rate", "expectile": "expectile"},
        **{"crr_samples": "crr_samples", "crr_upper_bound": "crr_max_weight", "crr_temperature": "crr_temperature"},
        **{"awr_temperature": "iql_inverse_temperature", "awr_upper_bound": "iql_max_weight"},
        **{"dpm_steps": "solver_calls", "backup_actions": "backup_actions"},
    }
    for theirs, ours in fields.items():
        np.testing.assert_allclose(ARRAYS[f"settings/{theirs}"], getattr(CONFIG, ours), rtol=1e-6, err_msg=ours)
    for rate in (CONFIG.critic_learning_rate, CONFIG.value_learning_rate):
        np.testing.assert_allclose(ARRAYS["settings/learning_rate"], rate, rtol=1e-6)
    np.testing.assert_allclose(ARRAYS["settings/dpm_t_end"], 1 / DPM.num_steps, rtol=1e-6)  # our first step's time


def test_initial_networks():
    state = jax.jit(edp.make(dataclasses.replace(CONFIG, improvement="iql"), SPEC).init)(jax.random.key(0))
    parts = {"actor": state.actor.model, "critic": state.critic.model, "value": state.value.model}
    for name, ours in parts.items():  # activations and frequencies, too
        assert jax.tree.structure(ours) == jax.tree.structure(network(name))
    for layers in (parts["actor"].body.layers, parts["critic"].networks.layers, parts["value"].network.layers):
        assert not any(np.any(layer.bias) for layer in layers)
        assert 32 * np.var(layers[1].weight) == pytest.approx(1.0, abs=0.2)  # PyTorch has 1 / 3


def test_schedule():
    np.testing.assert_allclose(OURS.beta, ARRAYS["schedule/beta"], rtol=1e-6)
    np.testing.assert_allclose(OURS.alpha_bar, ARRAYS["schedule/alpha_bar"], rtol=1e-5, atol=1e-7)
    for ours, theirs in (("posterior_x0_weight",) * 2, ("posterior_xt_weight",) * 2):
        # Theirs divide by 1 - alpha_bar in float32: the first is 1.3e-5 above the 1 that it stands for.
        np.testing.assert_allclose(getattr(OURS, ours), ARRAYS[f"schedule/{theirs}"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(OF_DPM.alpha_bar[ARRAYS["dpm/schedule/at"]], ARRAYS["dpm/schedule/alpha_bar"], rtol=1e-5)


def test_schedule_of_the_solver():
    log_alpha = log_alpha_between(OF_DPM, ARRAYS["dpm/network_indices"].astype(np.float64))
    np.testing.assert_allclose(log_alpha, ARRAYS["dpm/schedule/log_alpha"], rtol=1e-5)
    half_log_snr = log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))
    np.testing.assert_allclose(half_log_snr, ARRAYS["dpm/schedule/lam"], rtol=0, atol=1e-4)


@eqx.filter_jit
def predicted_noise(policy: Denoiser, group: str, times: jax.Array, rows: jax.Array) -> jax.Array:
    return policy.given_at(BATCH.observation, times)(array(f"{group}/x"), rows)


def test_prediction_of_the_noise():
    of_steps = partial(predicted_noise, group="denoise", times=jnp.arange(100), rows=array("denoise/t"))
    fractional = array("dpm/denoise/index")
    of_solver = partial(predicted_noise, group="dpm/denoise", times=fractional, rows=jnp.arange(16))
    close(of_steps(network("actor")), ARRAYS["denoise/eps"])
    close(of_solver(denoiser("dpm/policy")), ARRAYS["dpm/denoise/eps"])
    # Negative controls: frequencies down to 1 / 10000, cosines in the place of sines, whole steps.
    actor = network("actor")
    turned = eqx.tree_at(lambda n: n.time.layers[0].weight, actor, replace_fn=lambda w: jnp.roll(w, 8, axis=0))
    for departure in (denoiser("policy", endpoint=True), turned):
        assert np.max(np.abs(of_steps(departure) - ARRAYS["denoise/eps"])) > 1e-2
    whole = predicted_noise(denoiser("dpm/policy"), "dpm/denoise", jnp.floor(fractional), jnp.arange(16))
    assert np.max(np.abs(whole - ARRAYS["dpm/denoise/eps"])) > 1e-3


@eqx.filter_jit
def one_step(policy: Denoiser, draws: edp.Draws) -> tuple[jax.Array, jax.Array]:
    return edp.predicted_action(policy, SCHEDULE, BATCH, draws)


@pytest.mark.parametrize("kind", ["td3", "iql", "crr"])
def test_the_one_step_action(kind):
    loss, action = one_step(network("actor"), draws_of(kind))
    close(loss, ARRAYS[f"{kind}/diff_loss"])
    # Noise enters divided by the root of alpha_bar, and so does the last digit of eps.
    amplified = 1.0 / np.sqrt(SCHEDULE.alpha_bar[draws_of(kind).t])[:, None]
    assert np.all(np.abs(action - ARRAYS[f"{kind}/predicted_action"]) < 1e-5 + 1e-6 * amplified)
    assert np.any(np.abs(ARRAYS[f"{kind}/predicted_action"]) == 1.0)  # the clip took part


@eqx.filter_jit
def q_losses(critic: Critic) -> tuple[jax.Array, ...]:
    """-alpha mean Q / mean |Q|, the same Q above and below; the other Q below; both times the other Q."""
    q, other = critic(BATCH.observation, array("td3/predicted_action"))
    pairs = ((q, q), (q, other), (other, other))
    return tuple(CONFIG.q_weight * normalised_q_loss(above, below) for above, below in pairs)


def test_the_q_term():
    ours, other_below, other_coin = q_losses(network("critic"))
    close(ours, ARRAYS["td3/guide_loss"])
    # Negative controls: divided by the other Q, the other coin, the critics after their step, their targets.
    assert abs(other_below - ours) > 0.01 and abs(other_coin - ours) > 1.0
    stepped, _, _ = q_losses(network("critic", "td3/after/"))
    assert abs(stepped - ARRAYS["td3/guide_loss"]) > 1e-3
    assert abs(q_losses(network("target_critic"))[0] - ARRAYS["td3/guide_loss"]) > 1e-3


@eqx.filter_jit
def pieces_of_iql(value: VNetwork, stepped: VNetwork, critic: Critic) -> tuple[Any, ...]:
    loss, v = value_loss(value, critic, BATCH, CONFIG.expectile)
    predicted = array("iql/predicted_action")
    weight = edp.iql_weights(stepped, critic, BATCH, CONFIG)
    q = jnp.min(critic(BATCH.observation, BATCH.action), axis=0)
    log_prob = log_density(BATCH.action, predicted, jnp.zeros_like(predicted))
    next_v = stepped(BATCH.next_observation)
    return loss, v, q, weight, log_prob, edp.regression_loss(BATCH.action, predicted, weight), next_v


def test_pieces_of_iql():
    before, stepped, critic = network("value"), network("value", "iql/after/"), network("target_critic")
    names = ("v_loss", "v", "q_of_targets", "weight", "log_prob", "guide_loss", "next_v_after_step")
    for name, ours in zip(names, pieces_of_iql(before, stepped, critic), strict=True):
        np.testing.assert_allclose(ours, ARRAYS[f"iql/{name}"], rtol=2e-5, atol=1e-5, err_msg=name)
    # Negative controls: V before its step in the weights, the critics in the place of their targets.
    guides = [pieces_of_iql(before, before, critic)[5], pieces_of_iql(before, stepped, network("critic"))[5]]
    assert all(abs(guide - ARRAYS["iql/guide_loss"]) > 1e-2 for guide in guides)


@eqx.filter_jit
def pieces_of_crr(critic: Critic, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    predicted = array("crr/predicted_action")
    weight = edp.crr_weights(critic, BATCH, predicted, noise, CONFIG)
    return weight, edp.regression_loss(BATCH.action, predicted, weight)


def test_pieces_of_crr():
    noise = draws_of("crr").sample_noise
    weight, loss = pieces_of_crr(network("critic"), noise)
    np.testing.assert_allclose(weight, ARRAYS["crr/weight"], rtol=2e-5)
    close(loss, ARRAYS["crr/guide_loss"])
    assert np.any(ARRAYS["crr/weight"] < 20.0)
    # Negative controls: the target critics, samples clipped to the box.
    clipped = (
        jnp.clip(array("crr/predicted_action")[:, None] + noise, -1.0, 1.0) - array("crr/predicted_action")[:, None]
    )
    for critic, other in ((network("target_critic"), noise), (network("critic"), clipped)):
        assert abs(pieces_of_crr(critic, other)[1] - ARRAYS["crr/guide_loss"]) > 1e-2


# --- Updates ---


def patched(config: edp.Config, joint_norm: Real) -> Algorithm[edp.State]:
    """EDP with their constants, and with both critics' gradient clipped to a joint norm before each by its own."""

    def each_alone(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(joint_norm), optim.each_alone(optimiser))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edp, "make_schedule", lambda *_: SCHEDULE)
        patch.setattr(edp, "each_alone", each_alone)
        return edp.make(config, SPEC)


def before(kind: str) -> Networks:
    names = ("actor", "target_actor", "critic", "target_critic", *(("value",) if kind == "iql" else ()))
    return {name: network(name) for name in names}


@partial(jax.jit, static_argnums=0)
def run(
    kind: str, networks: Networks, changes: dict[str, Real], flip: jax.Array, joint_norm: jax.Array
) -> tuple[Networks, Metrics]:
    """The recorded updates of a kind: three of td3, one of the others. `flip` turns the coin."""
    config = dataclasses.replace(CONFIG, improvement=kind, **changes)
    algorithm = patched(config, joint_norm)
    state = state_with(algorithm, **networks)
    recorded = UPDATES if kind == "td3" else UPDATES[:1]
    stack = partial(jax.tree.map, lambda *rows: jnp.stack(rows))
    batches, draws = stack(*map(batch_of, recorded)), stack(*(draws_of(kind, update) for update in recorded))
    draws = draws._replace(maximise_first=draws.maximise_first ^ flip)
    return replay(algorithm, state, batches, draws)


SHARED = ("max_grad_norm", "target_rate", "ema_rate", "discount", "q_weight")
SHARED = (*SHARED, "expectile", "value_learning_rate", "iql_inverse_temperature", "iql_max_weight")
SHARED = (*SHARED, "crr_temperature", "crr_max_weight")


def updates(
    kind: str, flip: bool = False, joint_norm: float = np.inf, networks: Networks | None = None, **changes: float
) -> tuple[Networks, Metrics]:
    """All changes of numbers share one program of a kind."""
    values = jax.tree.map(jnp.float32, {name: getattr(CONFIG, name) for name in SHARED} | changes)
    return run(kind, networks or before(kind), values, jnp.asarray(flip), jnp.float32(joint_norm))


usual = cache(updates)


@pytest.mark.parametrize(
    ("kind", "count", "name"),
    [("td3", count, name) for count in (1, 3) for name in ("actor", "target_actor", "critic", "target_critic")]
    + [("iql", 1, name) for name in ("actor", "target_actor", "critic", "target_critic", "value")]
    + [("crr", 1, name) for name in ("actor", "target_actor")],
)
def test_parameters(kind, count, name):
    theirs = network(name, {1: f"{kind}/after/", 3: f"update3/{kind}/after/"}[count])
    assert distance(after(usual(kind)[0], count, name), theirs) < TOLERANCE
    assert distance(network(name), theirs) > 20 * TOLERANCE


def test_the_critics_step_as_in_td3_with_crr():
    assert distance(after(usual("crr")[0], 1, "critic"), network("critic", "td3/after/")) < TOLERANCE


def recorded(name: str, kind: str) -> np.ndarray:
    return np.array([ARRAYS[f"{update}{kind}/{name}"] for update in (UPDATES if kind == "td3" else UPDATES[:1])])


@pytest.mark.parametrize("kind", ["td3", "iql", "crr"])
def test_losses_and_norms_of_gradients(kind):
    metrics = usual(kind)[1]
    close(metrics["actor/bc_loss"], recorded("diff_loss", kind))
    guide = CONFIG.q_weight * metrics["actor/q_loss"] if kind == "td3" else metrics["actor/regression_loss"]
    close(guide, recorded("guide_loss", kind))
    np.testing.assert_allclose(metrics["actor/grad_norm"], recorded("policy_grad_norm", kind), rtol=2e-5)
    if kind != "crr":
        of_q = [recorded(f"qf{j}_loss", kind) for j in (1, 2)]
        np.testing.assert_allclose(metrics["critic/loss"], sum(of_q), rtol=1e-5)
        norms = [recorded(f"qf{j}_grad_norm", kind) for j in (1, 2)]
        np.testing.assert_allclose(metrics["critic/grad_norm"], np.hypot(*norms), rtol=2e-5)
        assert all(np.all(norm > CONFIG.max_grad_norm) for norm in norms)  # both were clipped
    if kind == "iql":
        close(metrics["value/loss"], recorded("v_loss", kind))
        np.testing.assert_allclose(metrics["value/grad_norm"], recorded("v_grad_norm", kind), rtol=2e-5)


def test_every_kind_reports_what_metrics_names():
    names = {kind: set(usual(kind)[1]) for kind in ("td3", "iql", "crr")}
    assert set.union(*names.values()) <= set(edp.METRICS)
    assert names["td3"] - names["crr"] == {"actor/q_loss"}
    assert names["crr"] - names["td3"] == {"actor/regression_loss", "actor/weight"}
    assert names["iql"] - names["crr"] == {"value/loss", "value/v", "value/grad_norm"}


def test_the_other_coin_shows():
    turned = updates("td3", flip=True)[1]["actor/q_loss"]
    assert abs(CONFIG.q_weight * turned[0] - ARRAYS["td3/guide_loss"]) > 1.0


def test_the_target_policy_draws_the_next_actions():
    networks = before("td3")
    by_policy = updates("td3", networks=networks | {"target_actor": networks["actor"]})[1]["critic/loss"]
    assert abs(by_policy[0] - ARRAYS["td3/qf1_loss"] - ARRAYS["td3/qf2_loss"]) > 0.1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"max_grad_norm": float("inf")}, "critic"),
        ({"max_grad_norm": float("inf")}, "actor"),
        ({"target_rate": 0.006}, "target_critic"),
        ({"ema_rate": 0.006}, "target_actor"),
        ({"discount": 0.98}, "critic"),
        ({"q_weight": 2.1}, "actor"),
    ],
    ids=str,
)
def test_small_departures_show_in_parameters(change, name):
    theirs = network(name, "update3/td3/after/")
    assert distance(after(updates("td3", **change)[0], 3, name), theirs) > 3 * TOLERANCE


@pytest.mark.parametrize(
    ("kind", "change", "name"),
    [
        ("iql", {"value_learning_rate": 3.2e-4}, "value/v"),
        ("iql", {"expectile": 0.71}, "value/loss"),
        ("iql", {"iql_inverse_temperature": 3.1}, "actor/weight"),
        ("iql", {"iql_max_weight": 1.0}, "actor/weight"),
        ("crr", {"crr_temperature": 0.51}, "actor/weight"),
        ("crr", {"crr_max_weight": 1.0}, "actor/weight"),
    ],
    ids=str,
)
def test_fields_of_one_kind_alone_count(kind, change, name):
    if name == "value/v":  # which is before the step
        ours, theirs = (after(updates(kind, **values)[0], 1, "value") for values in (change, {}))
        assert distance(ours, theirs) > 3 * TOLERANCE
    else:
        assert abs(updates(kind, **change)[1][name][0] - usual(kind)[1][name][0]) > 1e-4


def test_critics_clipped_together_show():
    together = after(updates("td3", joint_norm=1.0)[0], 3, "critic")
    assert distance(together, network("critic", "update3/td3/after/")) > 3 * TOLERANCE


def test_target_with_our_own_constants():
    # Theirs are made in float32, which costs 4e-5 here; the updates above have theirs.
    noise = draws_of("td3").next_noise
    networks = network("target_actor"), network("target_critic")
    ours = jax.jit(partial(edp.critic_target, schedule=OURS, batch=BATCH, noise=noise, config=CONFIG))(*networks)
    np.testing.assert_allclose(ours, ARRAYS["td3/target"], rtol=0, atol=1e-4)


# --- Acting ---


def solve(policy: Denoiser) -> jax.Array:
    return edp.sample_by_solver(policy, OF_DPM, DPM.solver_calls, BATCH.observation, array("dpm/start"))


def rounded_down(step: int) -> Any:
    """Our whole steps, but for one that the program's rounding left below itself: 666 where compiled, 333 where not."""
    exact = edp.whole_steps
    return lambda index: exact(index) - (np.abs(index - step) < 0.1)


def test_actions_of_the_solver(monkeypatch):
    action = jax.jit(solve)(denoiser("dpm/policy"))
    close(action, ARRAYS["dpm/action"])
    np.testing.assert_allclose(action, ARRAYS["dpm/action_compiled"], rtol=0, atol=3e-4)
    monkeypatch.setattr(edp, "whole_steps", rounded_down(666))
    close(jax.jit(lambda policy: solve(policy))(denoiser("dpm/policy")), ARRAYS["dpm/action_compiled"])


def test_a_noise_that_is_not_clipped_shows(monkeypatch):
    monkeypatch.setattr(edp, "clip_noise", lambda schedule, x, t, eps: eps)
    action = jax.jit(lambda policy: solve(policy))(denoiser("dpm/policy"))
    assert np.max(np.abs(action - ARRAYS["dpm/action_compiled"])) > 0.1


def test_max_q_backup(monkeypatch):
    drawn: list[jax.Array] = []
    theirs = array("max_q/next_action")  # clipped

    def sample(*arguments, sample=edp.sample):
        drawn.append(sample(*arguments))
        return jnp.where(jnp.abs(theirs) == 1.0, 1.3 * theirs, theirs)

    monkeypatch.setattr(edp, "whole_steps", rounded_down(333))
    monkeypatch.setattr(edp, "sample", sample)
    start = array("max_q/start")[None]

    @jax.jit
    def targets(policy: Denoiser, critic: Critic) -> tuple[jax.Array, jax.Array, jax.Array]:
        """With the backup, with nothing clipped, and the actions that we draw ourselves."""
        configs = dataclasses.replace(DPM, max_q_backup=True), DPM
        clipped, unclipped = (edp.critic_target(policy, critic, OF_DPM, BATCH, start, config) for config in configs)
        return clipped, unclipped, jnp.clip(drawn[0], -1.0, 1.0)

    clipped, unclipped, action = targets(denoiser("dpm/policy"), network("target_critic"))
    close(clipped, ARRAYS["max_q/target"])
    assert np.max(np.abs(unclipped - ARRAYS["max_q/target"])) > 1e-3
    close(action, theirs)


def test_action(monkeypatch):
    """The candidates, their Q, and the one that the program drew."""
    found: list[Any] = []

    def choose(candidates, q, choice, temperature, key):
        assert choice == "softmax_q"
        found.append((candidates, q / temperature))
        return candidates[..., 0, :]

    monkeypatch.setattr(edp, "whole_steps", rounded_down(666))
    monkeypatch.setattr(edp, "draw_chain", lambda *_: array("act/start")[None])
    monkeypatch.setattr(edp, "choose_candidate", choose)
    algorithm = edp.make(DPM, SPEC)

    @jax.jit
    def chosen_from(networks: Networks) -> tuple[jax.Array, jax.Array]:
        algorithm.act(state_with(algorithm, **networks), array("act/observation"), jax.random.key(0))
        return found.pop()

    policy = denoiser("dpm/policy")
    networks = {"actor": policy, "critic": network("critic"), "target_critic": network("target_critic")}
    candidates, q = chosen_from(networks)
    close(candidates, ARRAYS["act/candidates"])
    np.testing.assert_allclose(q, ARRAYS["act/q"], rtol=1e-5, atol=1e-5)
    index = np.argmax(q + ARRAYS["act/gumbel"], axis=-1)
    np.testing.assert_array_equal(index, ARRAYS["act/index"])
    close(candidates[np.arange(4), index], ARRAYS["act/action"])
    # Negative control: the target critics in the place of the critics.
    _, by_targets = chosen_from(networks | {"critic": network("target_critic")})
    assert np.max(np.abs(by_targets - ARRAYS["act/q"])) > 1e-2
