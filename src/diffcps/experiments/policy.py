"""A trained policy, loaded from a run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.experiments import fields
from diffcps.experiments.run import members_of
from diffcps.experiments.scaling import Scaling
from diffcps.training import checkpoint
from diffcps.training.folder import RunFolder
from diffcps.training.members import Member, Program
from diffcps.types import DatasetInfo, Spec, UserError

Checkpoint = Literal["best", "last"]


class Policy:
    """policy(observation) -> action, both NumPy arrays in the environment's units, with or without leading axes."""

    def __init__(self, act, state: Any, scaling: Scaling, spec: Spec, member: Member, seed: int = 0):
        self.spec = spec
        self.member = member
        self._act = jax.jit(act)
        self._state = state
        self._scaling = scaling
        self._key = jax.random.key(seed)
        self._calls = 0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """"*b obs" -> "*b act". Each call draws anew; a policy loaded again with the same seed repeats its draws."""
        observation = np.asarray(observation, np.float32)
        if observation.shape[-1:] != (self.spec.observation_size,):
            raise UserError(
                f"observation has shape {observation.shape}: this policy takes {self.spec.observation_size} numbers "
                "along the last axis"
            )
        self._calls += 1
        key = jax.random.fold_in(self._key, self._calls)
        return self._scaling.action(np.asarray(self._act(self._state, self._scaling.observation(observation), key)))


def open_run(run: str | Path, action_choice: str | None = None) -> tuple[RunFolder, dict[str, Any], Any, Any]:
    """A run folder, its config.json, the algorithm's module and its config (with another `action_choice` if given)."""
    folder = RunFolder(run)
    record = folder.read_config()
    try:
        module = ALGORITHMS[record["algorithm"]]
    except KeyError:
        raise UserError(f"{folder.config}: names no algorithm of this version of diffcps") from None
    values = fields.from_json(module.Config, record["config"])
    if action_choice is not None:
        if "action_choice" not in values:
            raise UserError(f"{record['algorithm']} has one way to act: leave out the action choice")
        values["action_choice"] = action_choice
    return folder, record, module, fields.build(module.Config, values)


def load_members(
    run: str | Path, which: Checkpoint = "best", action_choice: str | None = None
) -> tuple[dict[str, Any], list[Member], Program, Any, dict[str, Any]]:
    """config.json, members, their program (without data: it can act, not train), their states, and the checkpoint's information."""
    folder, record, module, config = open_run(run, action_choice)
    path = {"best": folder.best, "last": folder.last}[which]
    if which == "best" and not path.exists() and folder.last.exists():
        raise UserError(f"{folder.path}: has no best checkpoint, as nothing was scored; ask for the checkpoint last")
    members = members_of(record)
    spec = Spec(**record["spec"])
    program = Program(lambda swept: module.make(dataclasses.replace(config, **swept), spec), members, None)
    state, information = checkpoint.load(path, jax.eval_shape(program.init))
    return record, members, program, state, information


def dataset_info(record: dict[str, Any]) -> DatasetInfo:
    """The dataset's description, as config.json keeps it."""
    return DatasetInfo(**fields.from_json(DatasetInfo, record["dataset"]))


def load_policy(
    run: str | Path,
    checkpoint: Checkpoint = "best",
    *,
    member: int = 0,
    action_choice: str | None = None,
    seed: int = 0,
) -> Policy:
    """The policy of one member of a run, by default the first one's best checkpoint (the one with the highest mean return).

    `action_choice` overrides how it acts (sample, softmax_q, argmax_q); `seed` fixes its draws. Raises `UserError`.
    """
    record, members, _, states, _ = load_members(run, checkpoint, action_choice)
    if not 0 <= member < len(members):
        raise UserError(f"{run}: has no member {member}; it has members 0 to {len(members) - 1}")
    _, _, module, config = open_run(run, action_choice)
    spec = Spec(**record["spec"])
    algorithm = module.make(dataclasses.replace(config, **members[member].swept), spec)
    state = jax.tree.map(lambda x: jax.numpy.asarray(x[member]), states)
    return Policy(algorithm.act, state, Scaling.of(dataset_info(record)), spec, members[member], seed)
