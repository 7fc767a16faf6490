"""All checks of the theory: the few numbers that they come down to, and the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffcps.paper.job import DPI, Job
from diffcps.paper.table import write_csv
from diffcps.paper.theory.iteration import Constant, IterationRow
from diffcps.paper.theory.picture import theory_figure
from diffcps.paper.theory.surrogate import LineRow
from diffcps.paper.theory.tables import Tables, compute
from diffcps.plots import save_figure
from diffcps.storage import write_json
from diffcps.types import UserError

Numbers = dict[str, int | float]


def theory(job: Job) -> list[Path]:
    """Runs all checks, writes theory.png, .pdf, .json and a .csv for each table; returns the paths.

    Raises `UserError` where methods or seeds are chosen, as nothing is trained, and where SciPy is missing.
    """
    if job.methods is not None or job.seeds is not None:
        raise UserError("theory trains nothing: leave out --methods and --seeds")
    tables = compute(job.fast)
    summary = summarise(tables)
    for name, numbers in summary.items():
        for key, value in numbers.items():
            job.say(f"{name}: {key} {value:.4g}")

    picture = theory_figure(tables)
    pictures = [job.path(".png"), job.path(".pdf")]
    for path in pictures:
        save_figure(picture, path, DPI)
    write_json(job.path(".json"), {"fast": job.fast, **summary})
    files = [job.path(f"_{name}.csv") for name in Tables._fields]
    for path, rows in zip(files, tables, strict=True):
        write_csv(path, rows)
    return [*pictures, job.path(".json"), *files]


def summarise(tables: Tables) -> dict[str, Numbers]:
    """The outcome of each check."""
    worst = max(tables.without_assumption, key=lambda row: row.gap)
    return {
        "theorem 3.7": {
            "problems": len(tables.duality),
            "largest gap": max(abs(row.gap) for row in tables.duality),
            "largest excess of the constraint": max(row.excess for row in tables.duality),
            "largest difference of the policies": max(row.policy_difference for row in tables.duality),
        },
        "without assumption 3.5": {
            "budget": worst.budget,
            "primal": worst.primal,
            "dual": worst.dual,
            "gap": worst.gap,
        },
        "theorem 3.11": {
            "least d - P*": min(row.above_primal for row in tables.iteration),
            **_counts(tables.iteration, "proof", "C of the proof"),
            **_counts(tables.iteration, "printed", "C as printed"),
        },
        "proposition 3.8": _slopes(tables.lines),
    }


def _counts(rows: Sequence[IterationRow], constant: Constant, name: str) -> Numbers:
    chosen = [row for row in rows if row.constant == constant]
    violations = [row for row in chosen if row.violation]
    return {
        f"{name}: counts": len(chosen),
        f"{name}: counts above zero": sum(row.steps > 0 for row in chosen),
        f"{name}: violations": len(violations),
        f"{name}: violations where C bounds the slopes": sum(row.covered for row in violations),
        f"{name}: largest share of the bound": max(row.steps / row.bound for row in chosen),
    }


def _slopes(lines: Sequence[LineRow]) -> Numbers:
    """For five steps and the most, at variance beta."""
    slopes: Numbers = {}
    most = max(line.num_steps for line in lines)
    for line in lines:
        if line.variance == "beta" and line.num_steps in (5, most):
            name = f"H over {line.loss}, {line.family}, T = {line.num_steps}"
            slopes[f"{name}: slope"] = line.slope
            if line.family == "shifted" and line.predicted is not None:
                slopes[f"{name}: predicted slope"] = line.predicted
            if line.family == "all":
                slopes[f"{name}: deviation"] = line.deviation
    return slopes
