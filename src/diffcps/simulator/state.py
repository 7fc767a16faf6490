"""The state inside a simulator, read, set and named: MuJoCo's positions and velocities, or that of classic control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from diffcps.envs.quiet import mujoco_callbacks

if TYPE_CHECKING:
    import gymnasium

JOINT_PARTS = {
    ("position", 0): ("x", "y", "z", "qw", "qx", "qy", "qz"),
    ("velocity", 0): ("x", "y", "z", "turn x", "turn y", "turn z"),
    ("position", 1): ("qw", "qx", "qy", "qz"),
    ("velocity", 1): ("turn x", "turn y", "turn z"),
}
"""Names of the coordinates of MuJoCo's free (0) and ball (1) joints."""


@runtime_checkable
class _Joint(Protocol):
    name: str


class _Model(Protocol):
    nq: int
    nv: int
    jnt_qposadr: np.ndarray
    jnt_dofadr: np.ndarray
    jnt_type: np.ndarray

    def joint(self, index: int, /) -> _Joint: ...


class _Data(Protocol):
    qpos: np.ndarray
    qvel: np.ndarray
    qacc_warmstart: np.ndarray


@runtime_checkable
class Mujoco(Protocol):
    """What is used of a Gymnasium environment on MuJoCo, a package without type stubs."""

    model: _Model
    data: _Data
    frame_skip: int
    """Steps of the simulation in one step of the environment."""

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray, /) -> None: ...


@runtime_checkable
class MujocoAndMore(Protocol):
    """An environment on MuJoCo that counts more than qpos and qvel to its state, such as the place of a door."""

    def get_env_state(self) -> Mapping[str, np.ndarray]: ...
    def set_env_state(self, state: dict[str, np.ndarray], /) -> None: ...


@runtime_checkable
class ClassicControl(Protocol):
    """A classic environment, which is its own simulator."""

    state: np.ndarray | None


def get_state(environment: gymnasium.Env) -> np.ndarray | None:
    """A copy (state,) of qpos and qvel, one after the other, or of a classic environment's state; None without one."""
    inner = environment.unwrapped
    if isinstance(inner, Mujoco):
        return np.concatenate([inner.data.qpos.ravel(), inner.data.qvel.ravel()]).astype(np.float64)
    if isinstance(inner, ClassicControl) and inner.state is not None:
        return np.asarray(inner.state, np.float64).ravel().copy()
    return None


def set_state(environment: gymnasium.Env, state: np.ndarray, more: Mapping[str, np.ndarray]) -> None:
    """Puts the simulator there, with no memory of where it was; `more` is what else `set_env_state` takes."""
    inner = environment.unwrapped
    if isinstance(inner, Mujoco):
        inner.data.qacc_warmstart[:] = 0.0
        qpos, qvel = state[: inner.model.nq], state[inner.model.nq :]
        if more and isinstance(inner, MujocoAndMore):
            inner.set_env_state({"qpos": qpos, "qvel": qvel, **more})
        else:
            inner.set_state(qpos, qvel)
    elif isinstance(inner, ClassicControl):
        inner.state = state.copy()


def correct_state(environment: gymnasium.Env, state: np.ndarray) -> None:
    """Sets the state in the middle of an episode: all else that the last step has left in the simulator stays."""
    inner = environment.unwrapped
    if isinstance(inner, Mujoco):
        inner.data.qpos[:], inner.data.qvel[:] = state[: inner.model.nq], state[inner.model.nq :]
    elif isinstance(inner, ClassicControl):
        inner.state = state.copy()


def num_velocities(environment: gymnasium.Env) -> int:
    """How many coordinates at the end of the state are velocities; 0 where that is not known."""
    inner = environment.unwrapped
    return inner.model.nv if isinstance(inner, Mujoco) else 0


def coordinate_name(environment: gymnasium.Env, coordinate: int) -> str:
    """`velocity rootx`: the joint that a coordinate of the state belongs to."""
    inner = environment.unwrapped
    if not isinstance(inner, Mujoco):
        return f"state {coordinate}"
    model, positions = inner.model, inner.model.nq
    kind, address, index = ("position", model.jnt_qposadr, coordinate)
    if coordinate >= positions:
        kind, address, index = "velocity", model.jnt_dofadr, coordinate - positions
    joint = int(np.searchsorted(address, index, side="right")) - 1
    name = model.joint(joint).name or f"joint {joint}"
    parts = JOINT_PARTS.get((kind, int(model.jnt_type[joint])))
    return f"{kind} {name}" + (f" {parts[index - int(address[joint])]}" if parts else "")


def more_state(environment: gymnasium.Env, infos: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]] | None:
    """For each row what `set_env_state` takes besides qpos and qvel; None unless the file holds all of it."""
    inner = environment.unwrapped
    if not isinstance(inner, MujocoAndMore):
        return None
    keys = [key for key in inner.get_env_state() if key not in ("qpos", "qvel")]
    if not keys or not all(key in infos for key in keys):
        return None
    columns = [infos[key].astype(np.float64) for key in keys]
    return [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]


@contextmanager
def contacts() -> Iterator[list[bool]]:
    """A list that gets, at each stage of each of MuJoCo's steps, whether anything touches; empty without MuJoCo."""
    touches: list[bool] = []
    callbacks = mujoco_callbacks()
    if callbacks is None:
        yield touches
        return
    previous = callbacks.get_mjcb_control()
    callbacks.set_mjcb_control(lambda _, data: touches.append(data.ncon > 0))
    try:
        yield touches
    finally:
        callbacks.set_mjcb_control(previous)
