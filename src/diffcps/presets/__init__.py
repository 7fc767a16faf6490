"""Per-task hyper-parameters of the papers, by the task's name."""

from __future__ import annotations

from typing import Any, NamedTuple

from diffcps.data.transforms import RewardTransform


class Preset(NamedTuple):
    """What differs from an algorithm's defaults on one task."""

    reward: RewardTransform
    fields: dict[str, Any]


class _Task(NamedTuple):
    learning_rate: float
    kappa: float
    eta: float
    max_q_backup: bool
    policy_interval: int
    multiplier_min: float
    max_grad_norm: float
    multiplier_init: float


# DiffCPS, Table 4, with the clip and lambda_0 of the authors' program; eta is Diffusion-QL's, whose program has the
# same learning rates, backup flags and clips.
_TASKS = {
    "halfcheetah-medium-expert": _Task(3e-4, 0.04, 1.0, False, 2, 0.0, 7.0, 1.0),
    "hopper-medium-expert": _Task(3e-4, 0.03, 1.0, False, 2, 0.0, 5.0, 1.0),
    "walker2d-medium-expert": _Task(3e-4, 0.04, 1.0, False, 2, 0.0, 5.0, 1.0),
    "halfcheetah-medium": _Task(3e-4, 0.06, 1.0, False, 2, 0.0, 9.0, 1.0),
    "hopper-medium": _Task(3e-4, 0.05, 1.0, False, 2, 0.0, 9.0, 1.0),
    "walker2d-medium": _Task(3e-4, 0.03, 1.0, False, 2, 0.0, 1.0, 1.0),
    "halfcheetah-medium-replay": _Task(3e-4, 0.06, 1.0, False, 2, 0.0, 2.0, 1.0),
    "hopper-medium-replay": _Task(3e-4, 0.03, 1.0, False, 2, 0.0, 4.0, 1.0),
    "walker2d-medium-replay": _Task(3e-4, 0.03, 1.0, False, 2, 0.0, 4.0, 1.0),
    "antmaze-umaze": _Task(3e-4, 0.2, 0.5, False, 2, 0.3, 2.0, 3.0),
    "antmaze-umaze-diverse": _Task(3e-4, 0.09, 2.0, True, 2, 0.3, 3.0, 3.0),
    "antmaze-medium-play": _Task(1e-3, 0.3, 2.0, True, 2, 0.3, 2.0, 1.0),
    "antmaze-medium-diverse": _Task(3e-4, 0.2, 3.0, True, 2, 0.3, 1.0, 1.0),
    "antmaze-large-play": _Task(3e-4, 0.2, 4.5, True, 4, 0.3, 10.0, 0.5),
    "antmaze-large-diverse": _Task(3e-4, 0.2, 3.5, True, 4, 0.3, 7.0, 0.5),
}


def _reward(task: str) -> RewardTransform:
    return "cql_antmaze" if task.startswith("antmaze") else "none"


def _diffcps(task: _Task) -> dict[str, Any]:
    return {
        "actor_learning_rate": task.learning_rate,
        "kappa": task.kappa,
        "max_q_backup": task.max_q_backup,
        "policy_interval": task.policy_interval,
        "multiplier_min": task.multiplier_min,
        "max_grad_norm": task.max_grad_norm,
        "multiplier_init": task.multiplier_init,
    }


def _diffusion_ql(task: _Task) -> dict[str, Any]:
    return {
        "actor_learning_rate": task.learning_rate,
        "q_weight": task.eta,
        "max_q_backup": task.max_q_backup,
        "max_grad_norm": task.max_grad_norm,
    }


def _diffusion_bc(task: _Task) -> dict[str, Any]:
    return {"learning_rate": task.learning_rate}


PRESETS: dict[str, dict[str, Preset]] = {
    algorithm: {name: Preset(_reward(name), fields(task)) for name, task in _TASKS.items()}
    for algorithm, fields in (
        ("diffcps", _diffcps),
        ("diffusion_ql", _diffusion_ql),
        ("diffusion_bc", _diffusion_bc),
    )
}
"""Algorithm -> task -> preset."""

# DiffCPS, appendix F.2, which names these three and refers to appendix C for the rest.
PRESETS["diffcps"]["trifinger-push"] = Preset("none", {"kappa": 0.01, "num_steps": 45, "multiplier_min": 0.0})
