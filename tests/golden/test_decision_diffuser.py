"""Decision Diffuser against numbers recorded from the authors' program (planners/README.md)."""

from __future__ import annotations

from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import decision_diffuser
from diffcps.algorithms.decision_diffuser import Config, Draws, Model
from diffcps.diffusion.schedule import Schedule, make_schedule
from diffcps.optim import as_one_vector, clipped_adam, minimise, start
from diffcps.policies.plans import by_ranks, windows_at
from diffcps.types import Spec
from tests.conftest import load_golden
from tests.golden.planner_weights import Names, filled, mlp_of, their_schedule, unet
from tests.golden.test_diffuser import whole_episodes
from tests.golden.weights import distance

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = Spec(5, 3)
DD = load_golden("planners/decision_diffuser")
CONFIG = Config(horizon=8, num_steps=20, width=16, multipliers=(1, 2), inverse_width=32, padded_below=12)


def array(name: str) -> jax.Array:
    return jnp.asarray(DD[name])


@cache
def model(prefix: str = "") -> Model:
    """The weights before any update, or those below `after/`."""
    shape = eqx.filter_eval_shape(lambda key: Model(SPEC, CONFIG, key), jax.random.key(0))
    returns, inverse = Names(DD, f"{prefix}model/returns_mlp."), Names(DD, f"{prefix}inv_model/")
    found = (
        unet(DD, f"{prefix}model/", 5, 16, (1, 2), condition_size=16, resample=2),
        filled(shape.returns, mlp_of(returns, ["0", "2", "4"]), returns),
        filled(shape.inverse, mlp_of(inverse, ["0", "2", "4"]), inverse),
    )
    return eqx.tree_at(lambda model: (model.unet, model.returns, model.inverse), shape, found)


def schedule() -> Schedule:
    """The authors' constants, which they compute in float32."""
    return their_schedule(DD)


@pytest.mark.parametrize(("name", "kept"), [("with_return", 1.0), ("without_return", 0.0), ("masked", None)])
def test_the_model_is_the_authors(name, kept):
    kept = array("forward/mask")[:, 0] if kept is None else jnp.full(4, kept)
    found = model().noise(array("forward/x"), array("forward/t"), array("forward/returns")[:, 0], kept)
    np.testing.assert_allclose(found, DD[f"forward/out_{name}"], atol=5e-6)


@pytest.mark.parametrize("steps", [100, 200])
def test_the_schedule_is_the_authors(steps):
    ours, prefix = make_schedule("cosine", steps), f"schedule_T{steps}"
    np.testing.assert_allclose(ours.beta, DD[f"{prefix}/betas"], rtol=2e-4)
    np.testing.assert_allclose(ours.alpha_bar, DD[f"{prefix}/alphas_cumprod"], rtol=4e-4)
    np.testing.assert_allclose(ours.posterior_x0_weight, DD[f"{prefix}/posterior_mean_coef1"], rtol=2e-4)


def arguments(**changes):
    draws = Draws(array("loss/t"), array("loss/noise"), array("loss/mask")[:, 0])
    x = array("loss/x")
    return schedule(), x[..., 3:], x[..., :3], array("loss/returns")[:, 0], draws._replace(**changes)


def test_the_losses_and_one_update():
    optimiser = as_one_vector(clipped_adam(2e-4, float("inf")))
    update = jax.jit(lambda model: minimise(optimiser, start(optimiser, model), decision_diffuser.loss, *arguments()))
    trained, loss, (of_noise, of_inverse), norm = update(model())
    np.testing.assert_allclose(of_noise, DD["loss/diffusion_loss"], rtol=1e-5)
    np.testing.assert_allclose(of_inverse, DD["loss/inverse_loss"], rtol=1e-5)
    np.testing.assert_allclose(loss, DD["loss/loss"], rtol=1e-5)
    np.testing.assert_allclose(norm, DD["loss/grad_norm"], rtol=1e-5)
    assert distance(trained.model, model("after/")) < 1e-5


def test_the_loss_notices_another_mask_and_a_counted_first_step():
    _, (other, _) = decision_diffuser.loss(model(), *arguments(kept=1.0 - array("loss/mask")[:, 0]))
    assert abs(float(other) - float(DD["loss/diffusion_loss"])) > 1e-4
    error = (DD["loss/noise"] - DD["loss/prediction"]) ** 2
    assert abs(error.mean() - float(DD["loss/diffusion_loss"])) > 1e-3
    np.testing.assert_allclose(DD["loss/weights"][0], 0.0)


def plans(guidance: float = 1.2, temperature: float = 0.5, value: float | None = None):
    noise = temperature * array("chain/noise_in_order_of_use")[:-1]
    value = float(DD["chain/returns"][0, 0]) if value is None else value
    return planning()(jnp.float32(value), jnp.float32(guidance), noise)


@cache
def planning():
    return jax.jit(partial(decision_diffuser.plan, model(), schedule(), array("chain/condition_0")))


@pytest.mark.parametrize(("name", "guidance"), [("chain", 1.2), ("chain_unguided", 0.0), ("chain_conditional", 1.0)])
def test_plans(name, guidance):
    assert np.ptp(DD["chain/returns"]) == 0.0
    np.testing.assert_allclose(plans(guidance), DD[f"{name}/trajectories"], atol=1e-4)


@pytest.mark.parametrize("change", [{"guidance": 1.0}, {"guidance": 0.0}, {"temperature": 1.0}, {"value": 0.2}])
def test_other_settings_give_other_plans(change):
    assert np.abs(plans(**change) - DD["chain/trajectories"]).max() > 0.01


def test_the_action_between_two_planned_states():
    planned = array("chain/trajectories")
    found = model().action(planned[:, 0], planned[:, 1])
    np.testing.assert_allclose(found, DD["act/normed_action"], atol=1e-5)


def test_windows_returns_and_ranks_are_the_authors():
    dataset = whole_episodes("data/raw", DD)
    labels = decision_diffuser.label(dataset, CONFIG)
    row = labels.start.row[: int(labels.start.count[0])]
    first = np.concatenate([[0], np.cumsum(DD["data/path_lengths"])])
    np.testing.assert_array_equal(row, [first[episode] + begin for episode, begin, _ in DD["data/indices"]])
    read = windows_at(dataset, labels, row, 8)
    np.testing.assert_allclose(read.value, DD["data/returns"][:, 0], rtol=1e-5, atol=1e-6)
    action, observation = by_ranks(dataset.action), by_ranks(dataset.observation)
    theirs, varies = DD["data/trajectories"], [0, 1, 2, 3]  # the last observation is constant: 0 here
    np.testing.assert_allclose(action.into(read.action), theirs[..., :3], atol=2e-6)
    np.testing.assert_allclose(observation.into(read.observation)[..., varies], theirs[..., 3:][..., varies], atol=2e-6)
    np.testing.assert_array_equal(observation.into(read.observation)[..., 4], 0.0)
    points = observation.into(array("data/observation_points"))[:, varies]
    np.testing.assert_allclose(points, DD["data/observation_points_normalised"][:, varies], atol=2e-6)
    codes = action.back(array("data/action_codes"))
    np.testing.assert_allclose(codes, DD["data/action_codes_unnormalised"], atol=2e-5)


def test_acting_from_the_recorded_plans():
    dataset = whole_episodes("data/raw", DD)
    normed = array("act/normed_action")
    np.testing.assert_allclose(by_ranks(dataset.action).back(normed), DD["act/action"], atol=2e-5)
