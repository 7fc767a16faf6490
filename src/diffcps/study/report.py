"""The report of a study: a page, tables in three forms, and all results as rows, beside its runs."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from diffcps.storage import write_atomically
from diffcps.study.charts import COLOURS, DASHES, lighter
from diffcps.study.formats import (
    UNITS,
    comma_separated,
    data_heading,
    entry_parts,
    explanation,
    group_heading,
    latex,
    markdown,
    notes_of,
)
from diffcps.study.page import Page, page_of
from diffcps.study.plan import read_study
from diffcps.study.results import results_of, write_results
from diffcps.study.run import PLAN, standing_of
from diffcps.types import UserError

REPORT = "report.html"
TEMPLATE = "report.html.j2"
BESIDE = ("tables.md", "tables.tex", "tables.csv", "results.parquet")
"""What else is written, and what the page links to."""


def write_report(out: str | Path, reference: str | None = None) -> Path:
    """Writes the report of the study in the folder `out` as it is now, and returns its path.

    `reference` is the row that others are compared with, by default the first one of the plan. Every file is replaced
    as a whole. Raises `UserError` where the folder is no study's, for an unknown row, and without the packages of the
    extra `studies`.
    """
    out = Path(out)
    work = standing_of(out)
    check_packages()
    study = read_study(out / PLAN)
    results = results_of(study, out)
    page = page_of(study, work, results, out, reference)
    content = html(page)
    write_results(results, out / "results.parquet")
    write_atomically(out / "tables.md", markdown(page.name, page.tables).encode())
    write_atomically(out / "tables.tex", latex(page.name, page.tables).encode())
    write_atomically(out / "tables.csv", comma_separated(page.tables).encode())
    write_atomically(out / REPORT, content.encode())
    return out / REPORT


def check_packages() -> None:
    """Raises `UserError` where a package of the extra `studies` is missing: to be told before anything is trained."""
    for name in ("jinja2", "pyarrow", "scipy", "tomli_w"):
        if find_spec(name) is None:
            raise UserError(f"studies need {name}, which is not installed: pip install 'diffcps[studies]'")


def html(page: Page) -> str:
    """The page as one file that asks for no other. Raises `UserError` without Jinja2."""
    check_packages()
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("diffcps.study") / TEMPLATE).read_text("utf-8"))
    return template.render(
        page=page,
        light=COLOURS,
        dark=[lighter(colour) for colour in COLOURS],
        dashes=DASHES,
        units=UNITS,
        beside=BESIDE,
        explanation=explanation,
        data_heading=data_heading,
        group_heading=group_heading,
        entry_parts=entry_parts,
        notes_of=notes_of,
    )
