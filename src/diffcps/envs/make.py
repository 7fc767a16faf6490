"""Gymnasium environments made from their id: flat boxes only, and one line to read when something is wrong."""

from __future__ import annotations

import difflib
import re
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.envs.quiet import one_line, quiet_making
from diffcps.types import DatasetInfo, Spec, UserError

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.spaces import Box


class EnvironmentSpec(NamedTuple):
    """The sizes of an environment. Action bounds are in its own units, one number per action dimension."""

    observation_size: int
    action_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    max_steps: int | None
    """Time limit of one episode in environment steps; None where the environment has none."""


class Boxes(NamedTuple):
    """The spaces of an environment, flat boxes both; the action box has finite bounds."""

    observation: Box
    """(observation_size,)."""
    action: Box
    """(action_size,)."""


def make_environment(environment_id: str, render_mode: str | None = None) -> gymnasium.Env:
    """The environment with this Gymnasium id (`package:Id-v0` imports `package` first). The caller closes it.

    What Gymnasium warns about while making it (an old version, say) is told once per process.

    Raises `UserError` for an unknown id, a missing dependency, a mujoco-py environment, an observation or action
    space that is not a flat box, an action box without bounds, and a render mode that the environment lacks.
    """
    import gymnasium
    from gymnasium import error as gymnasium_error

    _register_ours(environment_id)
    # The checker talks to authors of environments: of no use here.
    make = partial(gymnasium.make, environment_id, disable_env_checker=True)
    try:
        with quiet_making():
            # Not every constructor takes a render mode.
            environment = make() if render_mode is None else make(render_mode=render_mode)
    except gymnasium_error.DependencyNotInstalled as error:
        raise UserError(
            f"environment {environment_id} needs a package that is not installed: {one_line(error)}"
        ) from error
    except gymnasium_error.Error as error:
        raise UserError(f"unknown environment {environment_id!r}: {_hint(environment_id)}") from error
    except ImportError as error:
        successor = re.sub(r"-v[23]$", "-v5", environment_id)
        if successor != environment_id and successor in gymnasium.registry:
            reason = f"it ran on mujoco-py, which is retired; use {successor}"
        else:
            reason = f"{one_line(error)}; install the package that provides it"
        raise UserError(f"environment {environment_id} cannot be made: {reason}") from error
    except TypeError as error:
        if render_mode is not None and "render_mode" in str(error):
            raise UserError(f"environment {environment_id} has no render mode {render_mode!r}") from error
        raise

    problem = _space_problem(environment)
    if problem:
        environment.close()
        raise UserError(f"environment {environment_id} cannot be used: {problem}")
    return environment


def boxes(environment: gymnasium.Env) -> Boxes:
    """The spaces of an environment that `make_environment` has made."""
    from gymnasium.spaces import Box

    observation, action = environment.observation_space, environment.action_space
    assert isinstance(observation, Box) and isinstance(action, Box)
    return Boxes(observation, action)


def environment_spec(environment_id: str) -> EnvironmentSpec:
    """Sizes, action bounds and time limit of an environment. Errors as in `make_environment`."""
    with closing(make_environment(environment_id)) as environment:
        observation, action = boxes(environment)
        assert environment.spec is not None
        return EnvironmentSpec(
            observation_size=observation.shape[0],
            action_size=action.shape[0],
            action_low=tuple(action.low.tolist()),
            action_high=tuple(action.high.tolist()),
            max_steps=environment.spec.max_episode_steps,
        )


def check_fits(spec: Spec, info: DatasetInfo, environment_id: str) -> None:
    """Raises `UserError` when what was learnt from `info.source` (of sizes `spec`) cannot act in the environment."""
    environment = environment_spec(environment_id)
    for name, ours, theirs in (
        ("observations", spec.observation_size, environment.observation_size),
        ("actions", spec.action_size, environment.action_size),
    ):
        if ours != theirs:
            raise UserError(
                f"{name} have {ours} numbers in {info.source} but {theirs} in environment {environment_id}: "
                "name the environment (and its version) that the data were recorded in"
            )


def _register_ours(environment_id: str) -> None:
    """Imports the module that registers this id, where the id is one of ours. Some need an extra: `UserError`."""
    ours = environment_id.removeprefix("diffcps/")
    if ours == environment_id:
        if re.match("antmaze-.*-singletask", environment_id):
            import diffcps.envs.ogbench
    elif ours.startswith(("AntDirection-", "AntMaze-")):
        import diffcps.envs.ant_maze
    elif ours.startswith("Maze2D-"):
        import diffcps.envs.point_maze
    elif ours.startswith("Ant-"):
        import diffcps.envs.ant
    elif ours.startswith("Adroit"):
        import diffcps.envs.adroit
    elif ours.startswith("Kitchen-"):
        import diffcps.envs.kitchen
    elif ours.startswith("TriFinger"):
        import diffcps.envs.trifinger  # noqa: F401


def _name(environment_id: str) -> str:
    """`Hopper-v5` -> `Hopper`."""
    return re.sub(r"-v\d+$", "", environment_id)


def _hint(environment_id: str) -> str:
    """The nearest id that Gymnasium knows, in its newest version. A D4RL dataset name leads to its environment."""
    import gymnasium

    by_version = sorted(gymnasium.registry.values(), key=lambda registered: registered.version or 0)
    ids = {_name(registered.id).lower(): registered.id for registered in by_version}  # the newest comes last and stays
    wanted = _name(environment_id).lower()
    for attempt in (wanted, wanted.split("-")[0]):  # "hopper-medium-v2" is a dataset, "Hopper" its environment
        nearest = difflib.get_close_matches(attempt, ids, n=1, cutoff=0.75)
        if nearest:
            return f"did you mean {ids[nearest[0]]}?"
    return "gymnasium.pprint_registry() lists the known ones; write package:Id-v0 for one that a package registers"


def _space_problem(environment: gymnasium.Env) -> str | None:
    """Why a policy over flat vectors cannot act here; None when it can."""
    from gymnasium.spaces import Box

    for name, space in (("observation", environment.observation_space), ("action", environment.action_space)):
        if not isinstance(space, Box) or len(space.shape) != 1:
            found = f"Box of shape {space.shape}" if isinstance(space, Box) else type(space).__name__
            return f"its {name} space is a {found}, and a Box of shape (size,) is needed; wrap the environment first"
    action = boxes(environment).action
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        return "its action space has no finite bounds; wrap it with gymnasium.wrappers.RescaleAction or similar"
    return None
