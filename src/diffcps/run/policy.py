"""A trained policy, loaded from a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.data.scaling import Scaling
from diffcps.envs.make import check_fits
from diffcps.evaluation.rollout import roll_out
from diffcps.evaluation.scores import normalised_score
from diffcps.evaluation.video import record_video
from diffcps.run import fields
from diffcps.run.folder import RunFolder
from diffcps.run.train import members_of, reference_of
from diffcps.training import checkpoint
from diffcps.training.members import Member, Program
from diffcps.types import Algorithm, DatasetInfo, Spec, UserError

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
        """ "*b obs" -> "*b act". Each call draws anew; a policy loaded again with the same seed repeats its draws."""
        observation = np.asarray(observation, np.float32)
        if observation.shape[-1:] != (self.spec.observation_size,):
            raise UserError(
                f"observation has shape {observation.shape}: this policy takes {self.spec.observation_size} numbers "
                "along the last axis"
            )
        self._calls += 1
        key = jax.random.fold_in(self._key, self._calls)
        return self._scaling.action(np.asarray(self._act(self._state, self._scaling.observation(observation), key)))


class LoadedRun(NamedTuple):
    """A run, read back."""

    folder: RunFolder
    record: dict[str, Any]
    """config.json"""
    members: list[Member]
    make: Callable[[Mapping[str, Any]], Algorithm]
    """The algorithm with the given swept values."""
    state: Any
    """The members' states at the checkpoint, stacked."""
    updates: list[int]
    """How many updates each member had made by then."""

    @property
    def spec(self) -> Spec:
        return Spec(**self.record["spec"])

    @property
    def scaling(self) -> Scaling:
        return Scaling.of(DatasetInfo(**fields.from_json(DatasetInfo, self.record["dataset"])))


def load_run(run: str | Path, which: Checkpoint = "best", action_choice: str | None = None) -> LoadedRun:
    """A run folder with one of its checkpoints; `action_choice` overrides how its policies act. Raises `UserError`."""
    folder = RunFolder(run)
    record = folder.read_config()
    module = ALGORITHMS.get(record.get("algorithm", ""))
    if module is None:
        raise UserError(f"{folder.config}: names no algorithm of this version of diffcps")
    values = fields.from_json(module.Config, record["config"])
    if action_choice is not None:
        if "action_choice" not in values:
            raise UserError(f"{record['algorithm']} has one way to act: leave out the action choice")
        values["action_choice"] = action_choice
    config = fields.build(module.Config, values)
    spec = Spec(**record["spec"])

    def make(swept: Mapping[str, Any]) -> Algorithm:
        return module.make(dataclasses.replace(config, **swept), spec)

    path = {"best": folder.best, "last": folder.last}[which]
    if not path.exists():
        others = [name for name, other in (("best", folder.best), ("last", folder.last)) if other.exists()]
        hint = f"it has the checkpoint {others[0]}" if others else "it was stopped before its first evaluation"
        raise UserError(f"{folder.path}: has no checkpoint {which}; {hint}")
    members = members_of(record)
    state, information = checkpoint.load(path, jax.eval_shape(Program(make, members, None).init))
    update = information["update"]
    updates = update if isinstance(update, list) else [update] * len(members)
    return LoadedRun(folder, record, members, make, state, updates)


def load_policy(
    run: str | Path,
    checkpoint: Checkpoint = "best",
    *,
    member: int = 0,
    action_choice: str | None = None,
    seed: int = 0,
) -> Policy:
    """The policy of one member of a run, by default from its best checkpoint (the one with the highest mean return).

    `action_choice` overrides how it acts (sample, softmax_q, argmax_q); `seed` fixes its draws. Raises `UserError`.
    """
    loaded = load_run(run, checkpoint, action_choice)
    if not 0 <= member < len(loaded.members):
        raise UserError(f"{run}: has no member {member}; it has members 0 to {len(loaded.members) - 1}")
    act = loaded.make(loaded.members[member].swept).act
    state = jax.tree.map(lambda x: jnp.asarray(x[member]), loaded.state)
    return Policy(act, state, loaded.scaling, loaded.spec, loaded.members[member], seed)


def evaluate(
    run: str | Path,
    checkpoint: Checkpoint = "best",
    *,
    episodes: int = 20,
    seed: int = 1000,
    environment: str | None = None,
    action_choice: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Whole episodes with every member of a run, from start states that training did not use.

    Episode e starts from seed `seed` + e. `success` is the share of episodes that the environment calls a success at
    their last step (None where it does not say). The result is also written into the run folder, as
    `evaluation-<checkpoint>.json`. Raises `UserError`.
    """
    loaded = load_run(run, checkpoint, action_choice)
    environment = environment or loaded.record["env"]
    if environment is None:
        raise UserError(f"{run}: was trained without an environment; name one with --env")
    info = DatasetInfo(**fields.from_json(DatasetInfo, loaded.record["dataset"]))
    check_fits(loaded.spec, info, environment)
    program = Program(loaded.make, loaded.members, None)
    state = program.place(loaded.state)

    def act(observation: np.ndarray, step: int) -> np.ndarray:
        return program.act(state, observation, seed, step)

    played = roll_out(loaded.scaling.wrap(act), environment, len(loaded.members), episodes, seed=seed, on_step=on_step)
    reference = reference_of(info, environment)
    rows = []
    for member, updates in zip(loaded.members, loaded.updates, strict=True):
        returns = played.returns[member.index]
        score = float(returns.mean())
        rows.append(
            {
                **member.columns,
                "updates": updates,
                "score": score,
                "std": float(returns.std()),
                "normalised": None if reference is None else float(normalised_score(score, reference)),
                "success": None if played.successes is None else float(played.successes[member.index].mean()),
                "returns": returns.tolist(),
                "lengths": played.lengths[member.index].tolist(),
            }
        )
    result = {
        "algorithm": loaded.record["algorithm"],
        "checkpoint": checkpoint,
        "env": environment,
        "episodes": episodes,
        "seed": seed,
        "action_choice": action_choice or loaded.record["config"].get("action_choice"),
        "members": rows,
    }
    loaded.folder.write_json(loaded.folder.path / f"evaluation-{checkpoint}.json", result)
    return result


def film(
    run: str | Path,
    path: Path,
    checkpoint: Checkpoint = "best",
    *,
    member: int,
    seed: int,
    environment: str,
    action_choice: str | None = None,
) -> float:
    """Writes an mp4 of one episode of a member and returns the return of what is seen (extra: video)."""
    policy = load_policy(run, checkpoint, member=member, action_choice=action_choice, seed=seed)
    return record_video(lambda observation, step: policy(observation), environment, path, seed=seed)
