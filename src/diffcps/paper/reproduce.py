"""What `diffcps reproduce` knows. A figure takes its policies from run folders below `out`/runs, and trains those that
are not there; a run that was interrupted goes on. Figures share runs: figure 5 trains what figures 1, 6 and 8 show.

Nothing that draws, simulates or trains is imported before an item is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffcps.paper.job import Job
from diffcps.storage import check_ours
from diffcps.types import UserError


def figure1(job: Job) -> list[Path]:
    """The noisy circle's data, AWR, and three diffusion methods over T."""
    from diffcps.paper.figures import actions_over_steps

    return actions_over_steps(job)


def figure5(job: Job) -> list[Path]:
    """Precision and coverage on the noisy circle over T, and precision over the distance allowed."""
    from diffcps.paper.figures import scores_over_steps

    return scores_over_steps(job)


def figure6(job: Job) -> list[Path]:
    """The noisy circle's data, and all diffusion methods over T."""
    from diffcps.paper.figures import actions_over_steps

    return actions_over_steps(job)


def figure7(job: Job) -> list[Path]:
    """The noisy circle's data, and TD3+BC, BCQ and BEAR."""
    from diffcps.paper.figures import actions_in_a_row

    return actions_in_a_row(job)


def figure8(job: Job) -> list[Path]:
    """The noisy circle's data, and diffusion behaviour cloning over T."""
    from diffcps.paper.figures import actions_in_a_row

    return actions_in_a_row(job)


def figure9(job: Job) -> list[Path]:
    """The stitching data, and trajectories of DiffCPS and of behaviour cloning."""
    from diffcps.paper.figures import stitched_trajectories

    return stitched_trajectories(job)


def theory(job: Job) -> list[Path]:
    """Theorems 3.7 and 3.11 and proposition 3.8, checked with numbers."""
    from diffcps.paper.theory.checks import theory

    return theory(job)


ITEMS: Mapping[str, Callable[[Job], list[Path]]] = {
    "figure1": figure1,
    "figure5": figure5,
    "figure6": figure6,
    "figure7": figure7,
    "figure8": figure8,
    "figure9": figure9,
    "theory": theory,
}


def reproduce(
    item: str,
    out: str | Path,
    fast: bool = False,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Trains and computes what an item needs, writes its pictures and tables (`out`/<item>*) and returns their paths.

    `fast` makes a smoke run. `methods` leaves out the others; `seeds` replaces the plan's; `say` is told what is being
    done. Raises `UserError`, and `Interrupted` after Ctrl-C: the same call goes on.
    """
    if item not in ITEMS:
        raise UserError(f"unknown item {item!r}: choose from {', '.join(ITEMS)}")
    job = Job(
        item=item,
        out=Path(out),
        fast=fast,
        methods=None if methods is None else tuple(methods),
        seeds=None if seeds is None else tuple(seeds),
        say=say,
    )
    for suffix in (".png", ".pdf"):
        check_ours(job.path(suffix))  # before anything is trained
    return ITEMS[item](job)
