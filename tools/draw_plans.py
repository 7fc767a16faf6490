"""Draw how a planner plans in a maze, and what becomes of the plan.

    python tools/draw_plans.py RUN --out plans.png

Above, one plan on its way from noise to a path, at several diffusion steps; below, plans from several starts (pale)
and what the ball then did (dark), until the episode's end. RUN is a run of diffuser or adapt_diffuser on a Maze2D task
whose plans are followed to their end (`replan_every` 0).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffcps.algorithms import ALGORITHMS
from diffcps.collect.maze_picture import draw_walls
from diffcps.diffusion.schedule import make_schedule
from diffcps.envs.make import make_environment
from diffcps.envs.mazes import Maze
from diffcps.plots import BLUE, GREEN, INK, ORANGE, save_figure
from diffcps.policies.guided import known_from, plan
from diffcps.run.policy import load_run

EPISODES = 4
SHOWN = 4
"""Diffusion steps that are drawn."""


def denoised(config: Any, state: Any, observation: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """A plan "h channel", scaled, before each diffusion step t, from T - 1 to 0, and at its end (t = -1)."""
    seen: list[tuple[int, np.ndarray]] = []

    def model(xt: jax.Array, t: jax.Array) -> jax.Array:
        seen.append((int(t), np.asarray(xt[0])))
        return state.target_planner(xt, t)

    shape = config.horizon, state.scale.action.centre.size + state.scale.observation.centre.size
    noise = jax.random.normal(jax.random.key(0), (config.num_steps, 1, *shape))
    known = known_from(config, state, jnp.asarray(observation)[None])
    schedule = make_schedule("cosine", config.num_steps)
    with jax.disable_jit():  # so that the model sees numbers, which can be kept
        plans, _ = plan(model, state.target_value, schedule, known, noise, config)  # pyright: ignore[reportArgumentType]
    return [*seen, (-1, np.asarray(plans[0]))]


def played(algorithm: Any, state: Any, environment: Any, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The plan and the positions of an episode, (n, 2) each, and its return."""
    observation, _ = environment.reset(seed=seed)
    memory = algorithm.in_episode.begin(jnp.asarray(observation, jnp.float32))
    act, positions, total, step, ended = jax.jit(algorithm.in_episode.act), [observation[:2]], 0.0, 0, False
    while not ended:
        action, memory = act(state, np.asarray(observation, np.float32), memory, step, jax.random.key(seed))
        observation, reward, terminated, truncated, _ = environment.step(np.asarray(action))
        positions.append(observation[:2])
        total, step, ended = total + float(reward), step + 1, terminated or truncated
    return np.asarray(state.scale.back(memory)[1])[:, :2], np.array(positions), total


def draw_path(axes: Axes, maze: Maze, xy: np.ndarray, colour: str, **looks: Any) -> None:
    row, column = np.moveaxis(maze.map_position(xy), -1, 0)
    axes.plot(column, row, color=colour, zorder=3, **looks)
    axes.scatter(column[0], row[0], color=INK, s=30, edgecolor="white", zorder=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", default="last", choices=("best", "selected", "last"))
    parser.add_argument("--seed", type=int, default=1000, help="of the first episode")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    loaded = load_run(options.run, options.checkpoint)
    record, member = loaded.record, loaded.record.members[0]
    config: Any = dataclasses.replace(record.config, **member.swept)
    if record.algorithm not in ("diffuser", "adapt_diffuser") or record.environment is None or config.replan_every:
        raise SystemExit(f"{options.run}: is no run of diffuser or adapt_diffuser that follows one plan in a maze")
    environment: Any = make_environment(record.environment)
    if not isinstance(maze := getattr(environment.unwrapped, "maze", None), Maze):
        raise SystemExit(f"{options.run}: {record.environment} is no Maze2D task")
    algorithm: Any = ALGORITHMS[record.algorithm].make(config, record.spec)
    state: Any = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), loaded.state)

    figure = Figure(figsize=(13, 6.6), layout="constrained", facecolor="white")
    axes = figure.subplots(2, max(SHOWN + 1, EPISODES))
    observation, _ = environment.reset(seed=options.seed)
    chain = denoised(config, state, np.asarray(observation, np.float32))
    for column, index in enumerate(np.linspace(0, len(chain) - 1, SHOWN + 1).round().astype(int)):
        t, scaled = chain[index]
        draw_walls(axes[0, column], maze.walls)
        xy = np.asarray(state.scale.back(jnp.asarray(scaled))[1])[:, :2]
        draw_path(axes[0, column], maze, xy, BLUE, linewidth=0.8, marker=".", markersize=3)
        axes[0, column].set_title(f"t = {t + 1} of {config.num_steps}", fontsize=9, color=INK)
    for column in range(EPISODES):
        planned, executed, total = played(algorithm, state, environment, options.seed + column)
        draw_walls(axes[1, column], maze.walls)
        draw_path(axes[1, column], maze, planned, ORANGE, linewidth=4.0, alpha=0.35, label="planned")
        draw_path(axes[1, column], maze, executed, BLUE, linewidth=1.2, label="executed")
        goal = maze.map_position(np.asarray(state.goal)[:2])
        axes[1, column].scatter(goal[1], goal[0], marker="*", s=150, color=GREEN, edgecolor="white", zorder=5)
        axes[1, column].set_title(f"return {total:.0f}", fontsize=9, color=INK)
    axes[1, 0].legend(fontsize=8, loc="lower left")
    for empty in axes[1, EPISODES:]:
        empty.set_axis_off()
    save_figure(figure, options.out)


if __name__ == "__main__":
    main()
