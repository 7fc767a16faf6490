"""The paper's figures of the toy problems: which policies each shows, and what it writes.

Reference: arXiv:2310.05333, figures 1 and 5 to 9; what the paper leaves open: docs/figures.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from diffcps.envs import toy
from diffcps.paper import toy_picture
from diffcps.paper.job import DPI, Job
from diffcps.paper.methods import METHODS
from diffcps.paper.ring import DISTANCE, nearest_distances, share_within
from diffcps.paper.table import write_csv, write_markdown
from diffcps.paper.toy_picture import Line, Panel
from diffcps.paper.toy_runs import (
    NEAR_GOAL,
    PathRow,
    RingRow,
    Trajectories,
    circle,
    circle_actions,
    exact_denoiser_actions,
    has_steps,
    logged_trajectories,
    path_row,
    points_of,
    ring_rows,
    stitching_trajectories,
)
from diffcps.plots import GREY, INK, save_figure
from diffcps.records import fields
from diffcps.storage import Json, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTANCES = np.geomspace(0.002, 0.5, 60)
"""Thresholds of the curve in figure 5."""
SCORES: Mapping[str, Callable[[RingRow], float]] = {
    "Actions on the data": lambda row: row.on_data,
    "Data covered by actions": lambda row: row.covered_data,
}
"""The scores that figure 5 shows over T."""


def actions_over_steps(job: Job) -> list[Path]:
    """Figures 1 and 6: a column per diffusion method with a row per T; the left column has the data and the others."""
    chosen = job.chosen()
    rows: list[RingRow] = []
    others = [_panel(job, method, None, rows) for method in chosen if not has_steps(method)]
    left: list[Panel | None] = [Panel(points_of(circle())), *others]
    columns: list[list[Panel | None]] = [
        [_panel(job, method, t, rows) for t in job.plan.num_steps] for method in chosen if has_steps(method)
    ]
    height = max(map(len, (left, *columns)))
    filled = [column + [None] * (height - len(column)) for column in (left, *columns)]
    picture = toy_picture.ring_figure(points_of(circle()), list(zip(*filled, strict=True)))
    return _write(job, picture, rows, {"distance": DISTANCE})


def actions_in_a_row(job: Job) -> list[Path]:
    """Figures 7 and 8: the data and the actions of each method, at each T where it has diffusion steps."""
    rows: list[RingRow] = []
    shown = [(method, t) for method in job.chosen() for t in (job.plan.num_steps if has_steps(method) else (None,))]
    panels = [Panel(points_of(circle())), *(_panel(job, method, t, rows) for method, t in shown)]
    return _write(job, toy_picture.ring_figure(points_of(circle()), [panels]), rows, {"distance": DISTANCE})


def scores_over_steps(job: Job) -> list[Path]:
    """Figure 5: precision and coverage over T, and precision over the distance allowed."""
    steps = job.plan.num_steps
    sources = [*(_trained(job, method) for method in job.chosen()), _exact(job), _drawn_anew(job)]
    by_steps = {
        title: [
            Line(source.label, source.colour, steps, source.over(len(steps), score), source.dashed)
            for source in sources
        ]
        for title, score in SCORES.items()
    }
    distances: list[float] = DISTANCES.tolist()
    by_distance = [Line(source.label, source.colour, distances, source.shares, source.dashed) for source in sources]
    rows = [row for source in sources for of_steps in source.rows for row in of_steps]
    curves = {source.label: source.shares.mean(axis=0).round(4).tolist() for source in sources}
    extra = {"distance": DISTANCE, "curves_num_steps": max(steps), "distances": distances, "curves": curves}
    return _write(job, toy_picture.score_figure(by_steps, by_distance, max(steps), DISTANCE), rows, extra)


def stitched_trajectories(job: Job) -> list[Path]:
    """Figure 9: the stitching data, and trajectories of each method's policies."""
    dataset = toy.stitching()
    data = logged_trajectories(dataset)
    rows = [path_row("data", None, data)]
    first: dict[str, Trajectories] = {}
    for method in job.chosen():
        played = stitching_trajectories(job, method, dataset)
        first[method] = played[0]
        rows += [path_row(method, seed, shown) for shown, seed in zip(played, job.plan.seeds, strict=True)]
    return _write(job, toy_picture.stitching_figure(data, first), rows, {"near_goal": NEAR_GOAL})


def _panel(job: Job, method: str, num_steps: int | None, rows: list[RingRow]) -> Panel:
    """The first seed's actions; the scores of all seeds are added to `rows`."""
    actions = circle_actions(job, method, num_steps)
    scored = ring_rows(method, num_steps, job.plan.seeds, actions)
    rows += scored
    return Panel(actions[0], method, num_steps, scored[0].on_data)


class Source(NamedTuple):
    """One source of actions in figure 5: a method, or what it is compared with."""

    label: str
    colour: str
    dashed: bool
    rows: list[list[RingRow]]
    """For each T the rows of all seeds; a single list where T means nothing."""
    shares: Float[np.ndarray, "seeds distances"]
    """Share of the actions, at the largest T, nearer to the data than each of DISTANCES."""

    def over(self, num_steps: int, score: Callable[[RingRow], float]) -> Float[np.ndarray, "seeds steps"]:
        """A score for so many values of T."""
        rows = self.rows * num_steps if len(self.rows) == 1 else self.rows
        return np.array([[score(row) for row in of_steps] for of_steps in rows]).T


def _trained(job: Job, method: str) -> Source:
    steps = job.plan.num_steps if has_steps(method) else (None,)
    actions = {t: circle_actions(job, method, t) for t in steps}
    rows = [ring_rows(method, t, job.plan.seeds, action) for t, action in actions.items()]
    largest = actions[max(job.plan.num_steps) if has_steps(method) else None]
    toy_method = METHODS[method]
    return Source(toy_method.label, toy_method.colour, not has_steps(method), rows, _shares(largest))


def _exact(job: Job) -> Source:
    name = "exact denoiser"
    job.say(f"{name} of the data")
    actions = {t: exact_denoiser_actions(circle(), t, job.plan.num_actions)[None] for t in job.plan.num_steps}
    rows = [ring_rows(name, t, [None], action) for t, action in actions.items()]
    return Source(name, INK, True, rows, _shares(actions[max(job.plan.num_steps)]))


def _drawn_anew(job: Job) -> Source:
    name = "data drawn anew"
    actions = points_of(toy.noisy_circle(job.plan.num_actions, seed=1))[None]
    return Source(name, GREY, True, [ring_rows(name, None, [None], actions)], _shares(actions))


def _shares(actions: Float[np.ndarray, "seeds n 2"]) -> Float[np.ndarray, "seeds distances"]:
    data = points_of(circle())
    return np.stack([share_within(nearest_distances(action, data)[0], DISTANCES) for action in actions])


def _write(
    job: Job, picture: Figure, rows: Sequence[RingRow] | Sequence[PathRow], extra: Mapping[str, Json]
) -> list[Path]:
    """The figure's files: the picture twice, the rows as CSV, everything as JSON, means over the seeds as Markdown."""
    paths = [job.path(suffix) for suffix in (".png", ".pdf", ".csv", ".json", ".md")]
    png, pdf, table, content, means = paths
    save_figure(picture, png, DPI)
    save_figure(picture, pdf, DPI)
    write_csv(table, rows)
    all_rows: list[Json] = [fields.to_json(row) for row in rows]
    write_json(content, {"figure": job.item, "plan": fields.to_json(job.plan), **extra, "rows": all_rows})
    write_markdown(means, rows)
    return paths
