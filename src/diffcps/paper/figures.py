"""The paper's figures of the toy problems: train what a figure shows, score it, draw it.

Every figure takes its policies from run folders below `out`/runs; a run that is finished is only read, one that was
interrupted goes on. Figures share runs: figure 5 trains what figures 1, 6 and 8 show.

Reference: arXiv:2310.05333, figures 1 and 5 to 9; what the paper leaves open: docs/figures.md.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.data.scaling import Scaling
from diffcps.diffusion.schedule import make_schedule
from diffcps.envs import toy
from diffcps.envs.make import make_environment
from diffcps.paper.ring import DISTANCE, nearest_distances, ring_scores, share_within
from diffcps.paper.toy_picture import (
    COLOURS,
    LABELS,
    Line,
    Panel,
    Path2D,
    ring_figure,
    save_figure,
    score_figure,
    stitching_figure,
)
from diffcps.plots import GREY, INK
from diffcps.run import fields
from diffcps.run.folder import RunFolder
from diffcps.run.policy import Policy, load_policy, load_run
from diffcps.run.progress import Live
from diffcps.run.train import Settings, train
from diffcps.storage import write_atomically
from diffcps.types import Dataset, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plan:
    """How much is trained and drawn, the same for all methods of all figures."""

    updates: int = 20_000
    """Updates per method (appendix D)."""
    num_steps: tuple[int, ...] = (2, 5, 10, 15)
    """Diffusion steps T (figures 1, 5, 6 and 8)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds, trained together; pictures show the first, figure 5 and the tables all of them."""
    num_actions: int = 5_000
    """Actions drawn from each trained policy: as many as there are data."""
    episodes: int = 10
    """Episodes of the stitching problem per seed, and of either problem in each evaluation of a training."""
    width: int = 64
    """Units of every hidden layer. Appendix C has 256; a network of one constant observation and two action dimensions
    needs less, and 256 would make hours out of an hour."""

    def settings(self) -> Settings:
        every = -(-self.updates // 4)
        return Settings(
            updates=self.updates,
            eval_every=every,
            log_every=min(every, 500),
            episodes=self.episodes,
            seeds=self.seeds,
        )


FAST = Plan(updates=200, num_steps=(2, 5), seeds=(0, 1), num_actions=500, episodes=3, width=16)
"""A smoke run: nothing is learnt."""

SAMPLING: dict[str, Any] = {"stochastic": True, "action_choice": "sample"}
"""Set where a method has the field: a Gaussian policy is sampled instead of reduced to its mean, and a policy draws one
action instead of choosing among candidates by Q, so that the policy itself is seen."""
WIDTHS = ("width", "second_width", "vae_width")
"""Fields that take the plan's width."""

CIRCLE: dict[str, dict[str, Any]] = {
    # The least L_c, of the exact denoiser of these data, is 0.06, 0.16, 0.18, 0.19 at T = 2, 5, 10, 15: 0.2 can be met.
    # (The paper's Table 4 has no row for the toy problems.)
    "diffcps": {"kappa": 0.2},
    # The mean of several actions of a ring lies inside it. Choosing one of the candidates is SfBC's policy, and stays.
    "sfbc": {"averaged_actions": 1},
    # One candidate: an action of the policy, not the best of 100.
    "bcq": {"num_candidates": 1},
    # The warm-up of 40,000 updates would outlast the training: a tenth of it instead.
    "bear": {"num_candidates": 1, "warm_up_updates": 2_000},
}
"""What differs from a method's defaults on the noisy circle, and why."""

STITCHING: dict[str, dict[str, Any]] = {
    "diffcps": {"kappa": 0.2},
    # One action per state would be the mean of both arms; a Gaussian is what the paper calls BC's policy.
    "bc": {"policy": "gaussian"},
}
"""The same for stitching."""

DIFFUSION = ("sfbc", "diffusion_ql", "diffcps", "diffusion_bc")
STITCHING_STEPS = 5
"""Diffusion steps on the stitching problem (section 4.1: T = 5)."""
DISTANCES = np.geomspace(0.002, 0.5, 60)
"""Thresholds of the curve in figure 5."""
NEAR_GOAL = 0.2
"""An episode has reached the goal when it ends within this distance of it."""
ACTING_SEED = 1_000
"""Seed of the draws of trained policies, none of training's."""

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A figure's means: where runs are, how long they are, which methods are wanted."""

    out: Path
    plan: Plan
    methods: tuple[str, ...] | None
    say: Say

    @cached_property
    def circle(self) -> Dataset:
        return toy.noisy_circle()

    @cached_property
    def data(self) -> np.ndarray:
        """The data's actions in the environment's units, "n 2"."""
        return Scaling.of(self.circle.info).action(self.circle.action)

    def chosen(self, *names: str) -> list[str]:
        """Those of a figure's methods that are wanted. Raises `UserError` where another is."""
        others = set(self.methods or ()) - set(names)
        if others:
            raise UserError(f"{', '.join(sorted(others))} is not in this figure: it shows {', '.join(names)}")
        return [name for name in names if self.methods is None or name in self.methods]


Reproduced = tuple["Figure", list[Row], dict[str, Any]]
"""The picture, the rows of its table, and what else it shows."""


def reproduce(
    figure: str,
    out: str | Path,
    fast: bool = False,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    say: Say = lambda text: None,
) -> list[Path]:
    """Trains what a figure of FIGURES needs and writes `out`/<figure>.png, .pdf, .csv and .json; returns their paths.

    `methods` leaves out the others; `seeds` replaces the plan's; `say` is told what is being done. Raises `UserError`,
    and `Interrupted` after Ctrl-C: the same call goes on.
    """
    if figure not in FIGURES:
        raise UserError(f"unknown figure {figure!r}: choose from {', '.join(FIGURES)}")
    plan = FAST if fast else Plan()
    if seeds is not None:
        plan = dataclasses.replace(plan, seeds=tuple(seeds))
    job = Job(Path(out), plan, None if methods is None else tuple(methods), say)
    drawn, rows, extra = FIGURES[figure](job)

    job.out.mkdir(parents=True, exist_ok=True)
    path = job.out / figure
    save_figure(drawn, path)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path.with_suffix(".csv"), table.getvalue().encode())
    content = {"figure": figure, "plan": dataclasses.asdict(plan), **extra, "rows": rows}
    write_atomically(path.with_suffix(".json"), (json.dumps(content, indent=1) + "\n").encode())
    return [path.with_suffix(suffix) for suffix in (".png", ".pdf", ".csv", ".json")]


def figure1(job: Job) -> Reproduced:
    """Data, AWR, and three diffusion methods over T."""
    return _over_steps(job, ["awr"], ["sfbc", "diffusion_ql", "diffcps"])


def figure5(job: Job) -> Reproduced:
    """Precision and coverage over T, and precision over the distance allowed."""
    chosen = job.chosen(*DIFFUSION, "awr")
    steps, largest = job.plan.num_steps, max(job.plan.num_steps)
    rows: list[Row] = []
    lines: dict[str, list[Line]] = {"on_data": [], "covered_data": []}
    curves: dict[str, list[float]] = {}
    by_distance: list[Line] = []

    def add(label: str, colour: str, rows_of: list[list[Row]], dashed: bool = False) -> None:
        """One line per score, from the rows of each T."""
        for score in lines:
            y = np.array([[row[score] for row in of_steps] for of_steps in rows_of]).T
            lines[score].append(Line(label, colour, steps, y, dashed))

    def add_curve(label: str, colour: str, actions: np.ndarray, dashed: bool = False) -> None:
        y = np.stack([share_within(nearest_distances(action, job.data)[0], DISTANCES) for action in actions])
        curves[label] = y.mean(axis=0).round(4).tolist()
        by_distance.append(Line(label, colour, DISTANCES.tolist(), y, dashed))

    for method in chosen:
        actions = {t: _circle_actions(job, method, t) for t in (steps if method in DIFFUSION else (None,))}
        scored = [_ring_rows(job, action, method, t) for t, action in actions.items()]
        rows += [row for of_steps in scored for row in of_steps]
        dashed = method not in DIFFUSION
        add(LABELS[method], COLOURS[method], scored * len(steps) if dashed else scored, dashed)
        add_curve(LABELS[method], COLOURS[method], actions.get(largest, next(iter(actions.values()))), dashed)

    job.say("exact denoiser of the data")
    exact = {t: exact_denoiser_actions(job.circle, t, job.plan.num_actions)[None] for t in steps}
    anew = Scaling.of(job.circle.info).action(toy.noisy_circle(job.plan.num_actions, seed=1).action)[None]
    scored = [_ring_rows(job, action, "exact denoiser", t) for t, action in exact.items()]
    rows += [row for of_steps in scored for row in of_steps]
    add("exact denoiser", INK, scored, dashed=True)
    add_curve("exact denoiser", INK, exact[largest], dashed=True)
    scored = [_ring_rows(job, anew, "data drawn anew", None)]
    rows += scored[0]
    add("data drawn anew", GREY, scored * len(steps), dashed=True)
    add_curve("data drawn anew", GREY, anew, dashed=True)

    titles = {"on_data": "Actions on the data", "covered_data": "Data covered by actions"}
    picture = score_figure(
        {titles[score]: of_score for score, of_score in lines.items()}, by_distance, largest, DISTANCE
    )
    extra = {"distance": DISTANCE, "curves_num_steps": largest, "distances": DISTANCES.tolist(), "curves": curves}
    return picture, rows, extra


def figure6(job: Job) -> Reproduced:
    """Data and all diffusion methods over T."""
    return _over_steps(job, [], DIFFUSION)


def figure7(job: Job) -> Reproduced:
    """Data and three methods of before."""
    return _in_a_row(job, [(method, None) for method in job.chosen("td3_bc", "bcq", "bear")])


def figure8(job: Job) -> Reproduced:
    """Data and diffusion behaviour cloning over T."""
    return _in_a_row(job, [(method, t) for method in job.chosen("diffusion_bc") for t in job.plan.num_steps])


def figure9(job: Job) -> Reproduced:
    """The stitching data, and trajectories of DiffCPS and of behaviour cloning."""
    dataset = toy.stitching()
    position = np.concatenate([dataset.observation, dataset.next_observation], axis=1).reshape(-1, toy.HORIZON, 4)
    data = Path2D(
        np.concatenate([position[..., :2], position[:, -1:, 2:]], axis=1),
        np.asarray(dataset.reward, float).reshape(-1, toy.HORIZON).sum(axis=1),
    )
    paths, rows = [], [_path_row(data, "data", None)]
    for method in job.chosen("diffcps", "diffusion_bc", "bc"):
        steps = STITCHING_STEPS if "num_steps" in fields.field_types(ALGORITHMS[method].Config) else None
        run = _run(job, f"stitching-{method}", config_of(method, STITCHING, job.plan.width, steps), dataset)
        played = [
            Path2D(*play(load_policy(run, "last", member=i, seed=ACTING_SEED + seed), job.plan.episodes), method)
            for i, seed in enumerate(job.plan.seeds)
        ]
        paths.append(played[0])
        rows += [_path_row(path, method, seed) for path, seed in zip(played, job.plan.seeds, strict=True)]
    return stitching_figure(data, paths, toy.START, toy.GOAL), rows, {"near_goal": NEAR_GOAL}


FIGURES: dict[str, Callable[[Job], Reproduced]] = {
    "figure1": figure1,
    "figure5": figure5,
    "figure6": figure6,
    "figure7": figure7,
    "figure8": figure8,
    "figure9": figure9,
}


def config_of(method: str, problem: Mapping[str, Mapping[str, Any]], width: int, num_steps: int | None = None) -> Any:
    """The method's `Config` on a toy problem (CIRCLE or STITCHING)."""
    kind = ALGORITHMS[method].Config
    known = fields.field_types(kind)
    shared = SAMPLING | dict.fromkeys(WIDTHS, width) | ({} if num_steps is None else {"num_steps": num_steps})
    return fields.build(
        kind, {name: value for name, value in shared.items() if name in known} | dict(problem.get(method, {}))
    )


def exact_denoiser_actions(dataset: Dataset, num_steps: int, num_actions: int, seed: int = 0) -> np.ndarray:
    """What diffusion BC would do without any error of learning: DDPM's reverse chain with the data's own denoiser.

    E[x_0 | x_t] is a mean over the data's actions x^j with weights proportional to
    exp(-||x_t - sqrt(abar_t) x^j||^2 / (2 (1 - abar_t))), clipped as in the methods. Returns "num_actions 2", in the
    environment's units. What differs from the data is the error of `num_steps` steps.
    """
    schedule = make_schedule("vp", num_steps)
    rng = np.random.default_rng(seed)
    data = np.asarray(dataset.action, np.float32)

    def expected_x0(x: np.ndarray, t: int) -> np.ndarray:
        scale, variance = np.sqrt(schedule.alpha_bar[t]), 1.0 - schedule.alpha_bar[t]
        # ||x||^2 is the same for all data and drops out of the weights.
        logits = (scale * x @ data.T - 0.5 * scale**2 * np.sum(data**2, axis=1)) / variance
        weight = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weight @ data / weight.sum(axis=1, keepdims=True)

    blocks = []
    for first in range(0, num_actions, 500):
        x = rng.standard_normal((min(500, num_actions - first), data.shape[1]), np.float32)
        for t in reversed(range(num_steps)):
            mean = schedule.posterior_x0_weight[t] * np.clip(expected_x0(x, t), -1.0, 1.0)
            mean += schedule.posterior_xt_weight[t] * x
            x = mean if t == 0 else mean + schedule.posterior_std[t] * rng.standard_normal(x.shape, np.float32)
        blocks.append(np.clip(x, -1.0, 1.0))
    return Scaling.of(dataset.info).action(np.concatenate(blocks))


def play(policy: Policy, num_episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Episodes of the stitching problem: positions "episodes steps+1 2", and the return of each episode."""
    with ExitStack() as stack:
        environments = [stack.enter_context(closing(make_environment(toy.STITCHING))) for _ in range(num_episodes)]
        position = [np.stack([environment.reset(seed=0)[0] for environment in environments])]
        returns = np.zeros(num_episodes)
        for _ in range(toy.HORIZON):
            action = np.clip(policy(position[-1]), -1.0, 1.0)
            steps = [environment.step(a) for environment, a in zip(environments, action, strict=True)]
            position.append(np.stack([step[0] for step in steps]))
            returns += [float(step[1]) for step in steps]
    return np.stack(position, axis=1), returns


def _over_steps(job: Job, without_steps: Sequence[str], with_steps: Sequence[str]) -> Reproduced:
    """A column per diffusion method with a row per T; the left column has the data and the others."""
    chosen = job.chosen(*without_steps, *with_steps)
    rows: list[Row] = []

    def panel(method: str, num_steps: int | None) -> Panel:
        return _panel(job, method, num_steps, rows)

    left: list[Panel | None] = [Panel(job.data), *(panel(name, None) for name in chosen if name in without_steps)]
    columns = [[panel(name, t) for t in job.plan.num_steps] for name in chosen if name in with_steps]
    height = max(len(left), len(job.plan.num_steps) if columns else 1)
    filled = [column + [None] * (height - len(column)) for column in (left, *columns)]
    picture = ring_figure(job.data, list(zip(*filled, strict=True)))
    return picture, rows, {"distance": DISTANCE}


def _in_a_row(job: Job, shown: Iterable[tuple[str, int | None]]) -> Reproduced:
    rows: list[Row] = []
    panels = [Panel(job.data), *(_panel(job, method, num_steps, rows) for method, num_steps in shown)]
    return ring_figure(job.data, [panels]), rows, {"distance": DISTANCE}


def _panel(job: Job, method: str, num_steps: int | None, rows: list[Row]) -> Panel:
    """The first seed's actions; the scores of all seeds are added to `rows`."""
    actions = _circle_actions(job, method, num_steps)
    scored = _ring_rows(job, actions, method, num_steps)
    rows += scored
    return Panel(actions[0], method, num_steps, scored[0]["on_data"])


def _circle_actions(job: Job, method: str, num_steps: int | None) -> np.ndarray:
    """Actions of every seed's policy on the noisy circle, in the environment's units: "seeds num_actions 2"."""
    name = method if num_steps is None else f"{method}-T{num_steps}"
    run = _run(job, name, config_of(method, CIRCLE, job.plan.width, num_steps), job.circle)
    observation = np.zeros((job.plan.num_actions, 1), np.float32)
    policies = [load_policy(run, "last", member=i, seed=ACTING_SEED + seed) for i, seed in enumerate(job.plan.seeds)]
    return np.stack([policy(observation) for policy in policies])


def _run(job: Job, name: str, config: Any, dataset: Dataset) -> Path:
    """The run folder of a method, trained to the end."""
    path, settings = job.out / "runs" / name, job.plan.settings()
    if _finished(path, config, settings, dataset):
        job.say(f"{name}: trained already")
    else:
        job.say(f"{name}: training, {settings.updates:,} updates, {len(settings.seeds)} seeds")
        with Live(settings.updates, [f"seed {seed}" for seed in settings.seeds]) as live:
            train(config, dataset, settings, out=path, resume=True, display=live)
    return path


def _finished(path: Path, config: Any, settings: Settings, dataset: Dataset) -> bool:
    """Whether the folder holds exactly this run, with all its updates (`train` refuses any other run in it)."""
    folder = RunFolder(path)
    if not (folder.config.exists() and folder.last.exists()):
        return False
    record = folder.read_config()
    same = (
        record["config"] == fields.to_json(config)
        and record["seeds"] == list(settings.seeds)
        and record["dataset"]["sha256"] == dataset.info.sha256
    )
    return same and set(load_run(path, "last").updates) == {settings.updates}


def _ring_rows(job: Job, actions: np.ndarray, method: str, num_steps: int | None) -> list[Row]:
    """The scores of each seed's actions."""
    seeds = job.plan.seeds if method in ALGORITHMS else (None,)
    return [
        {"method": method, "num_steps": num_steps, "seed": seed, **ring_scores(action, job.data)._asdict()}
        for seed, action in zip(seeds, actions, strict=True)
    ]


def _path_row(path: Path2D, method: str, seed: int | None) -> Row:
    distance = np.linalg.norm(path.position[:, -1] - np.asarray(toy.GOAL), axis=1)
    return {
        "method": method,
        "seed": seed,
        "episodes": len(path.returns),
        "return_mean": float(path.returns.mean()),
        "return_std": float(path.returns.std()),
        "return_max": float(path.returns.max()),
        "reached_goal": float(np.mean(distance < NEAR_GOAL)),
    }
