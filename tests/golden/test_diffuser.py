"""Diffuser against numbers recorded from the authors' program: networks, losses, chains, data (planners/README.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffcps.algorithms import diffuser
from diffcps.diffusion.guidance import pulled, sample_known, with_gradient
from diffcps.diffusion.process import predict_x0
from diffcps.diffusion.schedule import Schedule, make_schedule
from diffcps.optim import Trained, as_one_vector, clipped_adam, minimise, start
from diffcps.policies.guided import loss_weight, value_loss
from diffcps.policies.plans import (
    PlanScale,
    Scale,
    WindowLabels,
    Windows,
    best_of,
    by_deviation,
    by_limits,
    knowing,
    plan_loss,
    windows_at,
)
from diffcps.rl.windows import draw_starts
from diffcps.types import Dataset, Spec
from tests.conftest import load_golden
from tests.golden.planner_weights import their_schedule, unet, value_network
from tests.golden.weights import distance
from tests.problems import dataset_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = Spec(5, 3)
ONE = load_golden("planners/diffuser")
VALUE = load_golden("planners/diffuser_value")
GUIDED = load_golden("planners/diffuser_guided")
DATA = load_golden("planners/diffuser_data")
MAZE = load_golden("planners/diffuser_maze2d")
TRAINING = load_golden("planners/diffuser_training")
ATTENTION = load_golden("planners/diffuser_attention")
CONFIG = diffuser.Config(
    horizon=8, num_steps=20, plans=4, width=16, multipliers=(1, 2), padded_below=12, guide_scale=3.0, batch_size=8
)
ADAM = as_one_vector(clipped_adam(2e-4, float("inf")))
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def array(of: Mapping[str, np.ndarray], name: str) -> jax.Array:
    return jnp.asarray(of[name])


def model(of: Mapping[str, np.ndarray] = ONE, prefix: str = "model/"):
    return unet(of, prefix, 8, 16, (1, 2))


def value(prefix: str = "value/"):
    return value_network(VALUE, prefix, 8, 16, (1, 4), 8)


def schedule() -> Schedule:
    """The authors' constants, which they compute in float32: ours differ by up to 2e-5 of themselves."""
    return their_schedule(ONE)


# --- Networks ---


@pytest.mark.parametrize("arrays", [ONE, ATTENTION], ids=["plain", "attention"])
def test_the_unet_is_the_authors(arrays):
    found = model(arrays)(array(arrays, "forward/x"), array(arrays, "forward/t"))
    np.testing.assert_allclose(found, arrays["forward/out"], atol=5e-6)


def test_without_attention_it_is_another():
    silent = eqx.tree_at(lambda unet: unet.attention.out.weight, model(ATTENTION), replace_fn=jnp.zeros_like)
    far = silent(array(ATTENTION, "forward/x"), array(ATTENTION, "forward/t")) - ATTENTION["forward/out"]
    assert np.abs(far).max() > 1e-3


def test_the_value_network_is_the_authors():
    found = value()(array(VALUE, "forward/x"), array(VALUE, "forward/t"))
    np.testing.assert_allclose(found, VALUE["forward/out"][:, 0], atol=2e-6)


@pytest.mark.parametrize(("arrays", "name", "steps"), [(ONE, "", 20), (MAZE, "_T64", 64), (MAZE, "_T256", 256)])
def test_the_schedule_is_the_authors(arrays, name, steps):
    ours = make_schedule("cosine", steps)
    for field, theirs in (
        ("beta", "betas"),
        ("alpha_bar", "alphas_cumprod"),
        ("posterior_x0_weight", "posterior_mean_coef1"),
        ("posterior_xt_weight", "posterior_mean_coef2"),
    ):
        np.testing.assert_allclose(getattr(ours, field), arrays[f"schedule{name}/{theirs}"], rtol=2e-4, atol=1e-12)


# --- Losses, and one update ---


def first_observation(arrays: Mapping[str, np.ndarray], last: bool = False):
    x = array(arrays, "loss/x_start")[..., 3:]
    return knowing(x[:, 0], x[:, -1] if last else None)


def loss_arguments(arrays: Mapping[str, np.ndarray], action_weight: float, last: bool = False) -> tuple[Any, ...]:
    weight = loss_weight(8, SPEC, action_weight)
    np.testing.assert_array_equal(weight, arrays["loss/weights"])
    noise = array(arrays, "loss/t"), array(arrays, "loss/noise")
    return schedule(), array(arrays, "loss/x_start"), first_observation(arrays, last), weight, *noise


def step(network: Any, loss: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """`minimise` with the authors' Adam, as one program."""
    return jax.jit(lambda network: minimise(ADAM, start(ADAM, network), loss, *arguments))(network)


def test_the_loss_of_the_model_and_its_update():
    trained, loss, error, norm = step(model(), plan_loss, *loss_arguments(ONE, 10.0))
    close(loss, ONE["loss/loss"])
    np.testing.assert_allclose(norm, ONE["loss/grad_norm"], rtol=1e-5)
    assert distance(trained.model, model(ONE, "after/model/")) < 2e-6
    assert float(error) != float(loss)


@pytest.mark.parametrize("change", ["weight", "input", "output"])
def test_the_loss_notices_what_is_different(change):
    schedule_, plan, known, weight, t, eps = loss_arguments(ONE, 10.0)
    network = model()
    if change == "weight":
        weight = jnp.ones_like(weight)
    calls = iter(["input", "output"])
    overwrite = lambda x: x if next(calls) == change else known(x)  # noqa: E731
    loss, _ = plan_loss(network, schedule_, plan, overwrite, weight, t, eps)
    assert abs(float(loss) - float(ONE["loss/loss"])) > 1e-3


def test_the_loss_of_the_value_and_its_update():
    arguments = schedule(), array(VALUE, "loss/x_start"), first_observation(VALUE), array(VALUE, "loss/target")[:, 0]
    noise = array(VALUE, "loss/t"), array(VALUE, "loss/noise")
    trained, loss, mean, norm = step(value(), value_loss, *arguments, *noise)
    close(loss, VALUE["loss/loss"])
    close(mean, VALUE["loss/prediction"].mean())
    np.testing.assert_allclose(norm, VALUE["loss/grad_norm"], rtol=1e-5)
    led = set(VALUE["after/parameters_led_by_rounding"]) if "after/parameters_led_by_rounding" in VALUE else set()
    assert distance(trained.model, value("after/value/")) < (1e-4 if led else 2e-5)


def test_the_loss_in_a_maze_knows_both_ends():
    loss, _ = plan_loss(model(), *loss_arguments(MAZE, 1.0, last=True))
    close(loss, MAZE["loss/loss"])
    assert abs(float(plan_loss(model(), *loss_arguments(MAZE, 1.0))[0]) - float(loss)) > 1e-3


def test_four_updates_of_the_trainer():
    """Two batches of four are one of eight here: the loss is a mean."""
    trained: Trained[Any] = start(ADAM, model())
    average, weight = trained.model, loss_weight(8, SPEC, 10.0)

    @jax.jit
    def update(trained, plan, t, eps):
        return minimise(ADAM, trained, plan_loss, schedule(), plan, knowing(plan[:, 0, 3:]), weight, t, eps)[0]

    for index in range(4):
        plan = array(TRAINING, "x_start")[index].reshape(8, 8, 8)
        t, eps = array(TRAINING, "t")[index].reshape(8), array(TRAINING, "noise")[index].reshape(8, 8, 8)
        trained = update(trained, plan, t, eps)
        average = optax.incremental_update(trained.model, average, 1.0 if index < 2 else 0.1)
    assert distance(trained.model, model(TRAINING, "after/model/")) < 2e-5
    assert distance(average, model(TRAINING, "after/ema/")) < 2e-5


# --- Chains ---


def noise_of(arrays: Mapping[str, np.ndarray], name: str) -> jax.Array:
    """Theirs has a draw for the last step, which is multiplied by zero."""
    return array(arrays, f"{name}/noise_in_order_of_use")[:-1]


@pytest.mark.parametrize("name", ["chain", "chain_clipped", "chain_epsilon"])
def test_plans_without_guidance(name):
    network = model()
    constants = schedule()

    def from_noise(x, t):
        return predict_x0(constants, x, t[None, None], network(x, t))

    known = knowing(array(ONE, "chain/condition"))
    found, _ = sample_known(
        constants,
        from_noise if name == "chain_epsilon" else network,
        known,
        noise_of(ONE, "chain"),
        clip=1.0 if name == "chain_clipped" else float("inf"),
    )
    np.testing.assert_allclose(found, ONE[f"{name}/trajectories"], atol=1e-4, rtol=1e-4)


def test_a_plan_between_two_known_ends():
    known = knowing(array(MAZE, "chain/condition_first"), array(MAZE, "chain/condition_last"))
    found, _ = sample_known(schedule(), model(), known, noise_of(MAZE, "chain"), clip=1.0)
    np.testing.assert_allclose(found, MAZE["chain/trajectories"], atol=1e-4)


def guided(scale: float, steps: int, stop_below: int, by_variance: bool):
    constants, network, known = schedule(), model(), knowing(array(GUIDED, "guided/condition"))
    rates = constants if by_variance else constants._replace(posterior_std=np.ones(20, np.float32))
    pull = pulled(rates, with_gradient(value()), known, scale, steps, stop_below)
    return jax.jit(lambda noise: sample_known(constants, network, known, noise, pull=pull))(noise_of(GUIDED, "guided"))


@pytest.mark.parametrize("name", ["guided", "guided_once", "guided_unscaled", "guided_to_the_end"])
def test_guided_plans(name):
    settings = {key: GUIDED[f"{name}/{key}"].item() for key in ("scale", "n_guide_steps", "t_stopgrad")}
    plans, values = guided(*settings.values(), by_variance=bool(GUIDED[f"{name}/scale_grad_by_std"]))
    order = np.argsort(-np.asarray(values))
    np.testing.assert_allclose(plans[order], GUIDED[f"{name}/trajectories_sorted"], atol=1e-4)
    np.testing.assert_allclose(values[order], GUIDED[f"{name}/values_sorted"], atol=1e-4)
    best = best_of(plans[None], values[None])
    np.testing.assert_allclose(best[0], GUIDED[f"{name}/trajectories_sorted"][0], atol=1e-4)


def test_every_choice_of_guidance_makes_other_plans():
    """Which the tests above therefore tell apart."""
    names = ("guided", "guided_once", "guided_unscaled", "guided_to_the_end", "unguided")
    best = [GUIDED[f"{name}/trajectories_sorted"] for name in names]
    far = [np.abs(a - b).max() for a, b in combinations(best, 2)]
    assert min(far) > 2e-3  # the tests allow 1e-4


def test_the_policy_takes_the_first_action_of_the_best_plan(monkeypatch):
    def read(name: str) -> Scale:
        return Scale(array(GUIDED, f"policy/{name}_mean"), array(GUIDED, f"policy/{name}_std"))

    config = diffuser.Config(**{**vars(CONFIG), "guide_steps": 2, "unguided_steps": 2})
    monkeypatch.setattr(diffuser, "make_schedule", lambda name, steps: schedule())
    algorithm = diffuser.make(config, SPEC)
    state = jax.tree.map(jnp.asarray, algorithm.init(jax.random.key(0)))
    state = state._replace(
        target_planner=model(), target_value=value(), scale=PlanScale(read("actions"), read("observations"))
    )
    noise = noise_of(GUIDED, "policy")
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise.reshape(shape))
    action = algorithm.act(state, array(GUIDED, "policy/observation").astype(jnp.float32), jax.random.key(0))
    np.testing.assert_allclose(action, np.clip(GUIDED["policy/action"], -1.0, 1.0), atol=1e-4)


# --- Data ---


def whole_episodes(raw: str, of: Mapping[str, np.ndarray]) -> Dataset:
    """The authors' file, without the last episode, which has no end and which they leave out."""
    ends = np.flatnonzero(of[f"{raw}/terminals"] | of[f"{raw}/timeouts"])
    rows = slice(0, ends[-1] + 1)
    return dataset_of(
        observation=of[f"{raw}/observations"][rows],
        next_observation=of[f"{raw}/observations"][rows],
        action=of[f"{raw}/actions"][rows],
        reward=of[f"{raw}/rewards"][rows],
        terminal=of[f"{raw}/terminals"][rows],
        timeout=of[f"{raw}/timeouts"][rows] & ~of[f"{raw}/terminals"][rows],
    )


def all_windows(dataset: Dataset, config: diffuser.Config) -> tuple[WindowLabels, Windows, jax.Array]:
    labels = diffuser.label(dataset, config)
    row = labels.start.row[: int(labels.start.count[0])]
    return labels, windows_at(dataset, labels, row, config.horizon), row


def test_windows_values_and_scales_are_the_authors():
    dataset = whole_episodes("raw", DATA)
    _, windows, row = all_windows(dataset, CONFIG)
    first = np.concatenate([[0], np.cumsum(DATA["gaussian/path_lengths"])])
    np.testing.assert_array_equal(row, [first[episode] + begin for episode, begin, _ in DATA["gaussian/indices"]])
    scale = PlanScale(by_deviation(dataset.action), by_deviation(dataset.observation))
    close(scale.into(windows.action, windows.observation), DATA["gaussian/trajectories"])
    np.testing.assert_allclose(windows.value, DATA["gaussian/values"][:, 0], rtol=1e-5)
    unpunished = diffuser.label(dataset, diffuser.Config(**{**vars(CONFIG), "termination_penalty": 0.0}))
    assert np.abs(unpunished.value[row] - DATA["gaussian/values"][:, 0]).max() > 50.0


def test_windows_that_may_not_pass_an_end():
    dataset = whole_episodes("raw", DATA)
    _, windows, row = all_windows(dataset, diffuser.Config(**{**vars(CONFIG), "padded_below": 0}))
    scale = PlanScale(by_limits(dataset.action), by_limits(dataset.observation))
    theirs = DATA["limits_no_padding/trajectories"]
    found = np.asarray(scale.into(windows.action, windows.observation))
    assert len(row) <= len(theirs)
    for one in found:
        assert np.abs(theirs - one).max(axis=(1, 2)).min() < 1e-5


def test_scales_are_the_authors():
    data, points = array(DATA, "normalisers/data"), array(DATA, "normalisers/points")
    close(by_deviation(data).into(points), DATA["normalisers/GaussianNormalizer/normalize_points"])
    close(by_limits(data).into(points), DATA["normalisers/LimitsNormalizer/normalize_points"])
    codes = array(DATA, "normalisers/codes")
    close(by_deviation(data).back(codes), DATA["normalisers/GaussianNormalizer/unnormalize_codes"])


def test_windows_are_drawn_from_all_starts_alike():
    dataset = whole_episodes("raw", DATA)
    labels, _, row = all_windows(dataset, CONFIG)
    drawn = np.asarray(draw_starts(labels.start, jax.random.key(0), 18_000))
    found, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(found, np.sort(row))
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)
