"""D4RL's Adroit tasks on the hands of gymnasium-robotics (extra `robotics`): pen, hammer, door, relocate.

Model, observation, action box and reset are those of its AdroitHand*-v1. The reward is written here: the sign of its
first term (hand to object) in `door`, `hammer` and `relocate` is the opposite of D4RL's in gymnasium-robotics 1.2.1 to
1.4.2 (its pull request 220). A dropped pen ends the episode, and 100 steps do, as in D4RL.
docs/environments.md lists all differences.

Reference: https://github.com/Farama-Foundation/D4RL, d4rl/hand_manipulation_suite.
"""

from __future__ import annotations

import contextlib
import io

import gymnasium
import numpy as np

from diffcps.types import UserError

try:
    with contextlib.redirect_stderr(io.StringIO()):  # it prints a note on these rewards
        from gymnasium_robotics.envs.adroit_hand import (  # pyright: ignore[reportMissingImports]
            adroit_door,
            adroit_hammer,
            adroit_pen,
            adroit_relocate,
        )
except ImportError as error:
    raise UserError(
        "the Adroit environments need the package gymnasium-robotics: pip install 'diffcps[robotics]'"
    ) from error

DROPPED = 0.075
"""A pen lower than this has been dropped."""


class Pen(adroit_pen.AdroitHandPenEnv):
    """Turn the pen to the orientation shown; 45 numbers, 24 actions. Ends where the pen is dropped."""

    def step(self, a):
        observation, reward, _, _, info = super().step(a)
        return observation, float(reward), bool(_place(self, "Object")[2] < DROPPED), False, info


class Hammer(adroit_hammer.AdroitHandHammerEnv):
    """Drive the nail into the board; 46 numbers, 26 actions."""

    def step(self, a):
        observation, _, _, _, info = super().step(a)
        hammer, palm, head = _place(self, "Object"), _site(self, "S_grasp"), _site(self, "tool")
        nail = _site(self, "S_target")
        rest = _distance(nail, _site(self, "nail_goal"))
        reward = -0.1 * _distance(palm, hammer) - _distance(head, nail) - 10.0 * rest
        reward -= 0.01 * float(np.linalg.norm(self.data.qvel))
        reward += 2.0 * (hammer[2] > 0.04 and head[2] > 0.04) + 25.0 * (rest < 0.02) + 75.0 * (rest < 0.01)
        return observation, float(reward), False, False, info


class Door(adroit_door.AdroitHandDoorEnv):
    """Undo the latch and open the door; 39 numbers, 28 actions."""

    def step(self, a):
        observation, _, _, _, info = super().step(a)
        angle = float(self.data.joint("door_hinge").qpos[0])
        reward = -0.1 * _distance(_site(self, "S_grasp"), _site(self, "S_handle")) - 0.1 * (angle - 1.57) ** 2
        reward -= 1e-5 * float(np.sum(np.square(self.data.qvel)))
        reward += 2.0 * (angle > 0.2) + 8.0 * (angle > 1.0) + 10.0 * (angle > 1.35)
        return observation, float(reward), False, False, info


class Relocate(adroit_relocate.AdroitHandRelocateEnv):
    """Carry the ball to the target; 39 numbers, 30 actions."""

    def step(self, a):
        observation, _, _, _, info = super().step(a)
        ball, palm, target = _place(self, "Object"), _site(self, "S_grasp"), _site(self, "target")
        rest = _distance(ball, target)
        reward = -0.1 * _distance(palm, ball)
        if ball[2] > 0.04:
            reward += 1.0 - 0.5 * _distance(palm, target) - 0.5 * rest
        reward += 10.0 * (rest < 0.1) + 20.0 * (rest < 0.05)
        return observation, float(reward), False, False, info


for _name, _steps in (("Pen", 100), ("Hammer", 200), ("Door", 200), ("Relocate", 200)):
    gymnasium.register(f"diffcps/Adroit{_name}-v1", f"diffcps.envs.adroit:{_name}", max_episode_steps=_steps)


def _place(environment, body: str) -> np.ndarray:
    return environment.data.body(body).xpos


def _site(environment, site: str) -> np.ndarray:
    return environment.data.site(site).xpos


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))
