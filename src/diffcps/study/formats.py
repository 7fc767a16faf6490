"""The tables of a study in Markdown, LaTeX and CSV, and the texts of their numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from diffcps.run.table import number_text
from diffcps.study.compare import BOLD_WITHIN, Average, Column, Entry, Row, ScoreTable, Unit

NOTHING = "–"
ABOUT_NUMBERS = (
    f"Mean ± deviation over seeds (division by n); bold: within {BOLD_WITHIN:.0%} of the best mean of the column."
)
UNITS: dict[Unit, str] = {"normalised": "normalised score", "return": "return"}
CSV_COLUMNS = (
    *("protocol", "row", "data", "unit", "mean", "deviation", "seeds", "planned_seeds", "bold", "notes"),
    "explanation",
)
AVERAGE = "average"
"""In the place of the data's name."""

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"–": "--", "±": r"$\pm$", "[": "{[}", "]": "{]}"},
}


def score_text(value: float, unit: Unit) -> str:
    """One decimal of a normalised score, four digits of a return."""
    return f"{round(value, 1) + 0.0:.1f}" if unit == "normalised" else number_text(value)


def deviation_text(value: float, unit: Unit) -> str:
    """A digit less than the return has."""
    return score_text(value, unit) if unit == "normalised" or value >= 1000 else f"{value:.3g}"


def entry_parts(entry: Entry | Average, unit: Unit) -> tuple[str, str]:
    """The mean of an entry and its deviation: `61.2` and ` ± 1.5`; a dash where there is none."""
    if entry.mean is None:
        return NOTHING, ""
    return score_text(
        entry.mean, unit
    ), "" if entry.deviation is None else f" ± {deviation_text(entry.deviation, unit)}"


def notes_text(entry: Entry | Average) -> str:
    """What must be known of an entry: ` (2 of 3 seeds)`."""
    return f" ({'; '.join(entry.notes)})" if entry.notes else ""


def headings(table: ScoreTable) -> list[str]:
    """Of the columns behind the first."""
    data = [f"{column.data} ({UNITS[column.unit]})" for column in table.columns]
    return ["seeds", *data, *(["average (normalised score)"] if table.has_averages else [])]


def caption(table: ScoreTable) -> str:
    """What the numbers of a table are, in sentences."""
    averages = "The average is that of the data's means; its deviation that of each seed's average."
    return " ".join(
        [table.protocol.explanation, ABOUT_NUMBERS, *([averages] if table.has_averages else []), *table.remarks]
    )


# --- Markdown ---


def markdown(name: str, tables: Sequence[ScoreTable]) -> str:
    """All tables, one under the other."""
    return "\n".join([f"# {_in_markdown(name)}", "", *(line for table in tables for line in _markdown_table(table))])


def _markdown_table(table: ScoreTable) -> list[str]:
    names = ["", *map(_in_markdown, headings(table))]
    lines = [f"## {_in_markdown(table.protocol.title)}", "", _in_markdown(caption(table)), ""]
    lines += [_markdown_row(names), "|---|" + "---:|" * (len(names) - 1)]
    for row in table.rows:
        cells = [_markdown_entry(entry, unit) for entry, unit in _cells(row, table)]
        lines.append(_markdown_row([_in_markdown(row.label), row.seeds or NOTHING, *cells]))
    return [*lines, ""]


def _markdown_entry(entry: Entry | Average, unit: Unit) -> str:
    mean, deviation = entry_parts(entry, unit)
    return f"{f'**{mean}**' if entry.is_bold else mean}{deviation}{_in_markdown(notes_text(entry))}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", re.sub(r"\s+", " ", text))


# --- LaTeX ---


def latex(name: str, tables: Sequence[ScoreTable]) -> str:
    """All tables as floats of the package booktabs."""
    head = ["% " + " ".join(name.split()), r"% \usepackage{booktabs}", ""]
    return "\n".join([*head, *(line for table in tables for line in _latex_table(table))])


def _latex_table(table: ScoreTable) -> list[str]:
    names = ["", *map(in_latex, headings(table))]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{in_latex(table.protocol.title)}. {in_latex(caption(table))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
        r"\toprule",
        rf"{' & '.join(names)} \\",
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        if number and row.is_compared and not table.rows[number - 1].is_compared:
            lines.append(r"\midrule")
        cells = [_latex_entry(entry, unit) for entry, unit in _cells(row, table)]
        lines.append(rf"{' & '.join([in_latex(row.label), in_latex(row.seeds or NOTHING), *cells])} \\")
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]


def _latex_entry(entry: Entry | Average, unit: Unit) -> str:
    mean, rest = entry_parts(entry, unit)
    bold = rf"\textbf{{{in_latex(mean)}}}" if entry.is_bold else in_latex(mean)
    return bold + in_latex(rest) + in_latex(notes_text(entry))


def in_latex(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(_LATEX.get(sign, sign) for sign in re.sub(r"\s+", " ", text))


# --- CSV ---


def comma_separated(tables: Sequence[ScoreTable]) -> str:
    """A line for each entry of each table, numbers in full; an average has the data `average`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            for column, entry in zip(table.columns, row.entries, strict=True):
                writer.writerow(_csv_row(table, row, column, entry))
            if row.average is not None:
                writer.writerow(_csv_average(table, row, row.average))
    return file.getvalue()


def _csv_row(table: ScoreTable, row: Row, column: Column, entry: Entry) -> list[object]:
    numbers = [entry.mean, entry.deviation, len(entry.scores) if entry.planned else "", entry.planned or ""]
    return _csv_line(table, row, [column.data, column.unit], numbers, entry)


def _csv_average(table: ScoreTable, row: Row, average: Average) -> list[object]:
    pooled = [
        entry
        for entry, column in zip(row.entries, table.columns, strict=True)
        if column.unit == "normalised" and entry.mean is not None and entry.planned
    ]
    seeds = [min(len(entry.scores) for entry in pooled), min(entry.planned for entry in pooled)] if pooled else ["", ""]
    return _csv_line(table, row, [AVERAGE, "normalised"], [average.mean, average.deviation, *seeds], average)


def _csv_line(
    table: ScoreTable, row: Row, where: Sequence[str], numbers: Sequence[object], entry: Entry | Average
) -> list[object]:
    texts = ["yes" if entry.is_bold else "", "; ".join(entry.notes), table.protocol.explanation]
    return [table.protocol.name, row.label, *where, *("" if each is None else each for each in numbers), *texts]


def _cells(row: Row, table: ScoreTable) -> list[tuple[Entry | Average, Unit]]:
    entries: list[tuple[Entry | Average, Unit]] = [
        (entry, column.unit) for entry, column in zip(row.entries, table.columns, strict=True)
    ]
    return entries if row.average is None else [*entries, (row.average, "normalised")]
