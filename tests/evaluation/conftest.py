"""An environment whose returns can be computed by hand, under three ids."""

from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

COUNTDOWN = "DiffcpsTestCountdown-v0"
ENDLESS = "DiffcpsTestEndless-v0"
LIMITLESS = "DiffcpsTestLimitless-v0"


class Countdown(gymnasium.Env):
    """Reset with seed s it lasts s mod 3 + 1 steps (for ever, where `endless`); a reward is s + 10 a_0 + a_1.

    Observations are (s, steps made). Everything that is done to an instance is written down.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012
    instances: list["Countdown"] = []  # noqa: RUF012
    render_error: Exception | None = None

    def __init__(self, endless: bool = False, render_mode: str | None = None):
        self.observation_space = Box(-np.inf, np.inf, (2,))
        self.action_space = Box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32))
        self.endless, self.render_mode = endless, render_mode
        self.seeds: list[int | None] = []
        self.actions: list[np.ndarray] = []
        self.num_closed = 0
        Countdown.instances.append(self)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self.seeds.append(seed)
        self.start, self.remaining = seed or 0, (seed or 0) % 3 + 1
        return np.array([self.start, 0], np.float32), {}

    def step(self, action: np.ndarray):
        assert self.remaining > 0 or self.endless, "stepped after its end"
        assert self.action_space.contains(action)
        self.actions.append(action)
        self.remaining -= 1
        reward = self.start + 10 * float(action[0]) + float(action[1])
        return np.array([self.start, len(self.actions)]), reward, self.remaining == 0 and not self.endless, False, {}

    def render(self):
        if Countdown.render_error is not None:
            raise Countdown.render_error
        return np.full((32, 48, 3), 20 * len(self.actions), np.uint8)

    def close(self):
        self.num_closed += 1


@pytest.fixture(autouse=True)
def countdown() -> Iterator[list[Countdown]]:
    gymnasium.register(COUNTDOWN, entry_point=f"{__name__}:Countdown", max_episode_steps=50)
    gymnasium.register(ENDLESS, entry_point=f"{__name__}:Countdown", max_episode_steps=4, kwargs={"endless": True})
    gymnasium.register(LIMITLESS, entry_point=f"{__name__}:Countdown")
    Countdown.instances.clear()
    Countdown.render_error = None
    yield Countdown.instances
    for environment_id in (COUNTDOWN, ENDLESS, LIMITLESS):
        del gymnasium.registry[environment_id]
