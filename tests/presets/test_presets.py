"""Every row of the presets against the papers' tables, written out here once more from the papers."""

import dataclasses
import json

import pytest

from diffcps.algorithms import ALGORITHMS
from diffcps.presets import presets_of
from diffcps.records import fields
from diffcps.tasks.catalogue import catalogue

# DiffCPS (arXiv:2310.05333), Table 4: learning rate, kappa, reward tune, max-Q backup, policy evaluation interval,
# lambda_clip. From the authors' program: clip of the gradients' norm, lambda_0.
TABLE_4 = """
halfcheetah-medium-expert  3e-4 0.04 none        no  2 0.0   7 1
hopper-medium-expert       3e-4 0.03 none        no  2 0.0   5 1
walker2d-medium-expert     3e-4 0.04 none        no  2 0.0   5 1
halfcheetah-medium         3e-4 0.06 none        no  2 0.0   9 1
hopper-medium              3e-4 0.05 none        no  2 0.0   9 1
walker2d-medium            3e-4 0.03 none        no  2 0.0   1 1
halfcheetah-medium-replay  3e-4 0.06 none        no  2 0.0   2 1
hopper-medium-replay       3e-4 0.03 none        no  2 0.0   4 1
walker2d-medium-replay     3e-4 0.03 none        no  2 0.0   4 1
antmaze-umaze              3e-4 0.2  cql_antmaze no  2 0.3   2 3
antmaze-umaze-diverse      3e-4 0.09 cql_antmaze yes 2 0.3   3 3
antmaze-medium-play        1e-3 0.3  cql_antmaze yes 2 0.3   2 1
antmaze-medium-diverse     3e-4 0.2  cql_antmaze yes 2 0.3   1 1
antmaze-large-play         3e-4 0.2  cql_antmaze yes 4 0.3  10 0.5
antmaze-large-diverse      3e-4 0.2  cql_antmaze yes 4 0.3   7 0.5
"""

# Diffusion-QL's program (main.py at d871f5c): learning rate, eta, max-Q backup, clip.
DIFFUSION_QL = """
halfcheetah-medium-expert  3e-4 1.0 no   7
hopper-medium-expert       3e-4 1.0 no   5
walker2d-medium-expert     3e-4 1.0 no   5
halfcheetah-medium         3e-4 1.0 no   9
hopper-medium              3e-4 1.0 no   9
walker2d-medium            3e-4 1.0 no   1
halfcheetah-medium-replay  3e-4 1.0 no   2
hopper-medium-replay       3e-4 1.0 no   4
walker2d-medium-replay     3e-4 1.0 no   4
antmaze-umaze              3e-4 0.5 no   2
antmaze-umaze-diverse      3e-4 2.0 yes  3
antmaze-medium-play        1e-3 2.0 yes  2
antmaze-medium-diverse     3e-4 3.0 yes  1
antmaze-large-play         3e-4 4.5 yes 10
antmaze-large-diverse      3e-4 3.5 yes  7
pen-human                  3e-5 0.15 no  7
pen-cloned                 3e-5 0.1 no   8
kitchen-complete           3e-4 0.005 no 9
kitchen-partial            3e-4 0.005 no 10
kitchen-mixed              3e-4 0.005 no 10
"""


ROBOTS = ("halfcheetah", "hopper", "walker2d")
MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
ANTMAZE = [f"antmaze-{maze}" for maze in MAZES]
# IQL (arXiv:2110.06169), section 5, and its program: expectile, beta, rewards. AWAC as CORL runs it: lambda, rewards.
LOCOMOTION = [f"{robot}-{data}" for robot in ROBOTS for data in ("medium", "medium-replay", "medium-expert")]
IQL = {"locomotion": (0.7, 3.0, "iql_locomotion"), "antmaze": (0.9, 10.0, "iql_antmaze")}
AWAC = {"locomotion": (0.3333, "none"), "antmaze": (0.1, "iql_antmaze")}

# IDQL's program (launcher/examples/train_ddpm_iql_offline.py and examples/states/train_diffusion_offline.py at
# 7582571): expectile, rewards.
IDQL = """
halfcheetah-medium-expert  0.7 iql_locomotion
hopper-medium-expert       0.7 iql_locomotion
walker2d-medium-expert     0.7 iql_locomotion
halfcheetah-medium         0.7 iql_locomotion
hopper-medium              0.7 iql_locomotion
walker2d-medium            0.7 iql_locomotion
halfcheetah-medium-replay  0.7 iql_locomotion
hopper-medium-replay       0.7 iql_locomotion
walker2d-medium-replay     0.7 iql_locomotion
antmaze-umaze              0.9 iql_antmaze
antmaze-umaze-diverse      0.9 iql_antmaze
antmaze-medium-play        0.9 iql_antmaze
antmaze-medium-diverse     0.9 iql_antmaze
antmaze-large-play         0.9 iql_antmaze
antmaze-large-diverse      0.9 iql_antmaze
"""


# SRPO's program (utils.py at b3b916a): beta.
SRPO = """
halfcheetah-medium-expert 0.01
hopper-medium-expert 0.01
walker2d-medium-expert 0.1
halfcheetah-medium 0.2
hopper-medium 0.05
walker2d-medium 0.05
halfcheetah-medium-replay 0.2
hopper-medium-replay 0.2
walker2d-medium-replay 0.5
antmaze-umaze 0.02
antmaze-umaze-diverse 0.04
antmaze-medium-play 0.08
antmaze-medium-diverse 0.05
antmaze-large-play 0.06
antmaze-large-diverse 0.05
"""


# EDP's program (diffusion/hps.py and trainer.py at b019648): clip; it has the rows of Diffusion-QL's table.
EDP_REWARDS = {"antmaze": "cql_antmaze", "pen": "min_max", "kitchen": "min_max"}


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


def reward(task: str) -> str:
    return {"antmaze": "cql_antmaze", "pen": "standardise"}.get(task.split("-")[0], "none")


def test_diffcps_is_table_4_row_by_row():
    presets = presets_of("diffcps")
    for task, rate, kappa, tune, backup, interval, least, clip, first in rows(TABLE_4):
        assert presets[task].reward == tune, task
        assert presets[task].fields == {
            "actor_learning_rate": float(rate),
            "kappa": float(kappa),
            "max_q_backup": backup == "yes",
            "policy_interval": int(interval),
            "multiplier_min": float(least),
            "max_grad_norm": float(clip),
            "multiplier_init": float(first),
        }, task
    assert set(presets) == {row[0] for row in rows(TABLE_4)} | {"trifinger-push"}
    push = {"num_steps": 45, "kappa": 0.01, "multiplier_min": 0.0}  # appendix F.2
    assert (presets["trifinger-push"].reward, presets["trifinger-push"].fields) == ("none", push)


def test_diffusion_ql_is_its_programs_table_row_by_row():
    presets = presets_of("diffusion_ql")
    for task, rate, eta, backup, clip in rows(DIFFUSION_QL):
        assert presets[task].reward == reward(task), task
        assert presets[task].fields == {
            "actor_learning_rate": float(rate),
            "q_weight": float(eta),
            "max_q_backup": backup == "yes",
            "max_grad_norm": float(clip),
        }, task
    assert set(presets) == {row[0] for row in rows(DIFFUSION_QL)}


def test_diffusion_bc_has_the_learning_rates_of_the_same_table():
    presets = presets_of("diffusion_bc")
    found = {task: (preset.reward, preset.fields) for task, preset in presets.items()}
    assert found == {row[0]: (reward(row[0]), {"learning_rate": float(row[1])}) for row in rows(DIFFUSION_QL)}


def test_edp_has_the_clips_of_the_same_table():
    found = {task: (preset.reward, preset.fields) for task, preset in presets_of("edp").items()}
    assert found == {
        task: (EDP_REWARDS.get(task.split("-")[0], "none"), {"max_grad_norm": float(clip)})
        for task, _, _, _, clip in rows(DIFFUSION_QL)
    }


# CQL as CORL runs it (configs/offline/cql at eeeeef2): w, the policy's rate, the transform of the rewards.
CQL = """
halfcheetah-medium-expert  10 3e-5 none
hopper-medium-expert       10 3e-5 none
walker2d-medium-expert     10 3e-5 none
halfcheetah-medium         10 3e-5 none
hopper-medium              10 3e-5 iql_locomotion
walker2d-medium            10 3e-5 none
halfcheetah-medium-replay  10 3e-5 none
hopper-medium-replay       10 3e-5 none
walker2d-medium-replay     10 3e-5 none
antmaze-umaze               5 1e-4 corl_antmaze
antmaze-umaze-diverse       5 1e-4 corl_antmaze
antmaze-medium-play         5 1e-4 corl_antmaze
antmaze-medium-diverse      5 1e-4 corl_antmaze
antmaze-large-play          5 1e-4 corl_antmaze
antmaze-large-diverse       5 1e-4 corl_antmaze
"""
CQL_ANTMAZE = {"lagrange": True, "gap": 0.8, "difference_floor": 200.0, "max_q_backup": True, "critic_depth": 5}


def test_cql_is_corls_table_row_by_row():
    presets = presets_of("cql")
    for task, weight, rate, tune in rows(CQL):
        assert presets[task].reward == tune, task
        rates = dict.fromkeys(("actor_learning_rate", "temperature_learning_rate"), float(rate))
        assert presets[task].fields == {
            "conservative_weight": float(weight),
            **rates,
            **(CQL_ANTMAZE if task.startswith("antmaze") else {}),
        }, task
    assert set(presets) == {row[0] for row in rows(CQL)}


def test_iql_has_a_row_for_each_locomotion_and_antmaze_task():
    presets = presets_of("iql")
    assert set(presets) == {*LOCOMOTION, *ANTMAZE}
    for task, preset in presets.items():
        expectile, beta, rewards = IQL["antmaze" if task in ANTMAZE else "locomotion"]
        assert (preset.reward, preset.fields) == (rewards, {"expectile": expectile, "inverse_temperature": beta}), task


def test_awac_has_a_row_for_each_locomotion_and_antmaze_task():
    presets = presets_of("awac")
    assert set(presets) == {*LOCOMOTION, *ANTMAZE}
    for task, preset in presets.items():
        temperature, rewards = AWAC["antmaze" if task in ANTMAZE else "locomotion"]
        assert (preset.reward, preset.fields) == (rewards, {"temperature": temperature}), task


def test_idql_has_the_expectiles_and_rewards_of_its_program():
    found = {task: (preset.reward, preset.fields) for task, preset in presets_of("idql").items()}
    assert found == {task: (reward, {"expectile": float(tau)}) for task, tau, reward in rows(IDQL)}


def test_srpo_has_its_programs_betas():
    presets = presets_of("srpo")
    for task, beta in rows(SRPO):
        of_mazes = {"expectile": 0.9, "actor_depth": 4, "normalise_guidance": True} if task in ANTMAZE else {}
        assert presets[task].fields == {"beta": float(beta)} | of_mazes, task
        assert presets[task].reward == ("iql_antmaze" if task in ANTMAZE else "iql_locomotion"), task
    assert set(presets) == {row[0] for row in rows(SRPO)}


def test_qgpo_has_the_rewards_of_its_program_and_more_support_actions_on_mazes():
    presets = presets_of("qgpo")
    assert set(presets) == {*LOCOMOTION, *ANTMAZE}
    for task, preset in presets.items():
        expected = ("iql_antmaze", {"support_actions": 32}) if task in ANTMAZE else ("iql_locomotion", {})
        assert (preset.reward, preset.fields) == expected, task


# Diffuser's program: horizon, scale, t_stopgrad, multipliers, attention (config/locomotion.py and its README's scales);
# horizon and diffusion steps in mazes (config/maze2d.py).
DIFFUSER = """
halfcheetah-medium-expert   4 0.001  4 1,4,8   yes
hopper-medium-expert       32 0.0001 4 1,2,4,8 no
walker2d-medium-expert     32 0.1    2 1,2,4,8 no
halfcheetah-medium          4 0.001  4 1,4,8   yes
hopper-medium              32 0.1    2 1,2,4,8 no
walker2d-medium            32 0.1    2 1,2,4,8 no
halfcheetah-medium-replay   4 0.001  4 1,4,8   yes
hopper-medium-replay       32 0.1    2 1,2,4,8 no
walker2d-medium-replay     32 0.1    2 1,2,4,8 no
"""
DIFFUSER_MAZES = {"maze2d-umaze": (128, 64), "maze2d-medium": (256, 256), "maze2d-large": (384, 256)}


@pytest.mark.parametrize("method", ["diffuser", "adapt_diffuser"])
def test_diffuser_is_its_programs_configuration_and_adapt_diffuser_plans_as_it_does(method):
    presets, default = presets_of(method), ALGORITHMS[method].Config()
    for task, horizon, scale, last, multipliers, attention in rows(DIFFUSER):
        found = dataclasses.replace(default, **presets[task].fields)
        assert (found.horizon, found.guide_scale, found.unguided_steps) == (int(horizon), float(scale), int(last)), task
        assert found.multipliers == tuple(map(int, multipliers.split(","))), task
        assert (found.attention, presets[task].reward) == (attention == "yes", "none"), task
    for task, (horizon, steps) in DIFFUSER_MAZES.items():
        found = dataclasses.replace(default, **presets[task].fields)
        assert (found.horizon, found.num_steps, found.multipliers) == (horizon, steps, (1, 4, 8)), task
        assert (found.plans, found.guide_steps, found.replan_every, found.padded_below) == (1, 0, 0, 0), task
        assert (found.goal, found.control, found.scale) == ("rewarded", "waypoints", "limits"), task
        assert (found.clip_plans, found.action_weight, presets[task].reward) == (True, 1.0, "none"), task
    assert set(presets) == {row[0] for row in rows(DIFFUSER)} | set(DIFFUSER_MAZES)


@pytest.mark.parametrize("method", list(ALGORITHMS))
def test_presets_are_configurations_and_come_back_from_json(method):
    kind = ALGORITHMS[method].Config
    for task, preset in presets_of(method).items():
        config = fields.build(kind, preset.fields)
        assert fields.from_json(kind, json.loads(json.dumps(fields.to_json(config)))) == config, task


def test_every_preset_of_the_catalogue_exists():
    named = {task.preset for task in catalogue().values() if task.preset is not None}
    assert named and named <= {task for method in ALGORITHMS for task in presets_of(method)}
