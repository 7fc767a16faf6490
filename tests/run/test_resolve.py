"""Task, preset, stored run and flags become one request: later ones win, and defaults contradict nothing."""

import math

import pytest

from diffcps.algorithms import diffcps
from diffcps.records.settings import Settings
from diffcps.run.resolve import Given, Request, given_by, resolve
from diffcps.types import UserError
from tests.run.test_folder import record_of


def data_of(request: Request) -> tuple[str, str, bool]:
    return request.source, request.reading.reward, request.reading.normalise_observation


def test_nothing_given_is_the_builtin_data_and_all_defaults():
    request = resolve("diffcps", Given())
    assert (request.config, request.settings, request.sweep) == (diffcps.Config(), Settings(), {})
    assert data_of(request) == ("builtin", "none", False)
    assert (request.task, request.preset) == (None, None)


def test_a_task_brings_data_and_preset():
    request = resolve("diffcps", Given(), task="antmaze-umaze-v0")
    assert (request.source, request.task, request.preset) == ("antmaze-umaze-v0", "antmaze-umaze-v0", "antmaze-umaze")
    assert (request.reading.reward, request.config) == (
        "cql_antmaze",
        diffcps.Config(kappa=0.2, multiplier_min=0.3, max_grad_norm=2.0, multiplier_init=3.0),
    )


def test_what_is_given_wins_over_task_and_preset():
    reading = {"reward": "iql_antmaze", "normalise_observation": True}
    given = Given({"kappa": 0.07}, {}, {"updates": 5}, "own.npz", reading)
    request = resolve("diffcps", given, task="antmaze-umaze-v0", preset="antmaze-large-play")
    assert data_of(request) == ("own.npz", "iql_antmaze", True)
    assert (request.task, request.preset) == ("antmaze-umaze-v0", "antmaze-large-play")
    assert request.config == diffcps.Config(
        kappa=0.07,
        multiplier_min=0.3,
        max_grad_norm=10.0,
        multiplier_init=0.5,
        max_q_backup=True,
        policy_interval=4,
    )
    assert request.settings == Settings(updates=5)


def test_a_task_without_a_preset_and_the_word_none():
    assert resolve("bc", Given(), task="hopper-medium-v2").preset is None
    request = resolve("diffcps", Given(), task="antmaze-umaze-v0", preset="none")
    assert (request.preset, request.config, request.reading.reward) == (None, diffcps.Config(), "none")


def test_further_rules_are_the_methods_own_words():
    given = Given({"action_choice": "sample"}, {}, {"also_act": ("softmax_q", "argmax_q")})
    assert resolve("diffcps", given).settings.also_act == ("softmax_q", "argmax_q")
    assert resolve("idql", Given(settings={"also_act": ("implicit",)})).settings.also_act == ("implicit",)


def test_a_sweep_takes_the_place_of_a_presets_value():
    request = resolve("diffcps", Given(sweep={"kappa": (0.1, 0.2)}), preset="hopper-medium")
    assert request.sweep == {"kappa": (0.1, 0.2)}
    assert request.config.kappa == 0.1 and request.config.max_grad_norm == 9.0  # pyright: ignore


def test_levels_of_a_network_may_be_equal():
    """Seeds may not."""
    request = resolve("diffuser", Given(fields={"multipliers": (1, 2, 2)}))
    assert request.config.multipliers == (1, 2, 2)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_stored_run_goes_on_as_it_was():
    stored = record_of()
    request = resolve("diffcps", Given(), stored=stored)
    assert (request.config, request.sweep, request.settings) == (stored.config, stored.sweep, stored.settings)
    assert data_of(request) == ("a.hdf5", "none", True)


def test_a_value_given_while_resuming_takes_the_place_of_a_sweep():
    request = resolve("diffcps", Given({"kappa": 0.3}, {"discount": (0.9, 0.99)}), stored=record_of())
    assert request.sweep == {"discount": (0.9, 0.99)}
    assert (request.config.kappa, request.config.discount) == (0.3, 0.9)  # pyright: ignore


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("diffcps", {"given": Given({"kapa": 1.0})}, "unknown field kapa: did you mean kappa"),
        ("diffcps", {"given": Given({"width": 0})}, "width is 0: it must be 1 or more"),
        ("diffcps", {"given": Given({"ema_start": -1})}, "ema_start is -1: it must be 0 or more"),
        ("diffcps", {"given": Given({"schedule": "vpp"})}, "schedule is 'vpp': it must be one of vp, linear, cosine"),
        ("diffcps", {"given": Given(sweep={"width": (1.0, 2.0)})}, "width cannot be swept"),
        ("diffcps", {"given": Given(sweep={"kappa": (1.0, 1.0)})}, "kappa is swept over .*: give each value once"),
        ("diffcps", {"given": Given(sweep={"kappa": (1.0, math.nan)})}, "kappa is nan"),
        ("diffcps", {"given": Given(settings={"seeds": (3, 1, 3)})}, "seeds names 3 twice"),
        ("bc", {"given": Given(settings={"also_act": ("sample",)})}, "bc has one way to act: leave out also_act"),
        ("diffcps", {"given": Given(settings={"also_act": ("implicit",)})}, "acts by sample, softmax_q, argmax_q"),
        ("diffcps", {"given": Given(settings={"also_act": ("softmax_q",)})}, "by which this run acts in any case"),
        ("diffcps", {"given": Given(settings={"also_act": ("sample", "sample")})}, "also_act names sample twice"),
        (
            "diffcps",
            {"given": Given(settings={"also_act": "sample"})},
            "also_act is 'sample': it must be a list of words",
        ),
        ("diffcps", {"preset": "hoper-medium"}, "unknown preset hoper-medium: did you mean hopper-medium"),
        ("bc", {"preset": "hopper-medium"}, "unknown preset hopper-medium"),
        ("diffcps", {"task": "hopper-medum-v2"}, "did you mean hopper-medium-v2"),
        ("bc", {"stored": record_of()}, "holds a run of diffcps, not of bc"),
        ("diffcps", {"stored": record_of(), "task": "hopper-medium-v2"}, "a run on no task, not on hopper-medium-v2"),
    ],
)
def test_what_cannot_be_meant_is_one_line(method, arguments, says):
    with pytest.raises(UserError, match=says):
        resolve(method, **({"given": Given()} | arguments))


def test_given_by_python_is_what_differs_from_the_defaults():
    assert given_by(diffcps.Config(kappa=0.07, width=16)) == {"kappa": 0.07, "width": 16}
    assert given_by(Settings(seeds=(1, 2))) == {"seeds": (1, 2)}
