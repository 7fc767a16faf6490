"""The environments that benchmarks mean by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from diffcps.tasks.catalogue import catalogue

LAST_OF_OLD = 3
"""Gym's versions up to this one ran on mujoco-py; D4RL's names end with such a version, too."""


def unversioned(environment_id: str) -> str:
    """`Hopper-v5` -> `Hopper`; Gymnasium's `Ant-v5` and our `diffcps/Ant-v2` -> `Ant`."""
    return re.sub(r"-v\d+$", "", environment_id).removeprefix("diffcps/")


def environment_by_name(name: str) -> str | None:
    """The catalogue's environment for a name of a benchmark; None where there is none.

    A name is a task (hopper-medium-v2 -> Hopper-v4), an old version of an environment (Hopper-v2 -> Hopper-v4), or what
    D4RL calls a robot (door-v0 -> diffcps/AdroitDoor-v1).
    """
    if name in catalogue():
        return catalogue()[name].environment
    version = re.search(r"-v(\d+)$", name)
    if version is not None and int(version[1]) > LAST_OF_OLD:
        return None
    return _environments().get(unversioned(name).lower())


@cache
def _environments() -> Mapping[str, str]:
    """Names without version, in small letters -> environment, in its newest version."""
    found: dict[str, str] = {}
    robots: dict[str, set[str]] = {}
    for task in catalogue().values():
        found |= {unversioned(task.id): task.environment, unversioned(task.environment).lower(): task.environment}
        robots.setdefault(task.id.split("-")[0], set()).add(task.environment)
    return {robot: environments.pop() for robot, environments in robots.items() if len(environments) == 1} | found
