"""The tables of a study in Markdown, LaTeX and CSV, and the texts of their numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from diffcps.run.table import number_text
from diffcps.study.compare import BOLD_WITHIN, Average, Column, Entry, Row, ScoreTable
from diffcps.study.plan import AVERAGE
from diffcps.study.published import Unit

NOTHING = "–"
ABOUT_NUMBERS = (
    f"Mean ± deviation over seeds (division by n); bold: within {BOLD_WITHIN:.0%} of the best mean of the column."
)
UNITS: dict[Unit, str] = {"normalised": "normalised score", "return": "return", "success": "success, last step"}
CSV_COLUMNS = (
    *("protocol", "row", "data", "unit", "mean", "deviation", "seeds", "planned_seeds", "bold", "notes"),
    *("published", "published_deviation", "difference", "difference_low", "difference_high", "explanation"),
)

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"–": "--", "±": r"$\pm$", "[": "{[}", "]": "{]}"},
}


def score_text(value: float, unit: Unit) -> str:
    """One decimal of a normalised score, three of a share, four digits of a return."""
    if unit == "return":
        return number_text(value)
    digits = 1 if unit == "normalised" else 3
    return f"{round(value, digits) + 0.0:.{digits}f}"


def deviation_text(value: float, unit: Unit) -> str:
    """A digit less than the return has."""
    return score_text(value, unit) if unit != "return" or value >= 1000 else f"{value:.3g}"


def entry_parts(entry: Entry | Average, unit: Unit) -> tuple[str, str]:
    """The mean of an entry and its deviation: `61.2` and ` ± 1.5`; a dash where there is none."""
    if entry.mean is None:
        return NOTHING, ""
    return score_text(
        entry.mean, unit
    ), "" if entry.deviation is None else f" ± {deviation_text(entry.deviation, unit)}"


def notes_of(entry: Entry | Average, unit: Unit) -> list[str]:
    """What must be known of an entry, and what stands beside it: the published number, and ours minus it."""
    if entry.published is None:
        return list(entry.notes)
    number, difference = entry.published
    spread = "" if number.deviation is None else f" ± {deviation_text(number.deviation, unit)}"
    notes = [*entry.notes, f"published {score_text(number.mean, unit)}{spread}"]
    if difference is None:
        return notes
    low_high = difference.interval
    between = "" if low_high is None else f" ({_signed(low_high.low, unit)} to {_signed(low_high.high, unit)})"
    return [*notes, f"difference {_signed(difference.value, unit)}{between}"]


def _signed(value: float, unit: Unit) -> str:
    text = score_text(value, unit)
    return text if value < 0 else f"+{text}"


def notes_text(entry: Entry | Average, unit: Unit) -> str:
    """The notes of an entry in brackets: ` (2 of 3 seeds)`."""
    notes = notes_of(entry, unit)
    return f" ({'; '.join(notes)})" if notes else ""


def headings(table: ScoreTable) -> list[str]:
    """Of the columns behind the first."""
    data = [f"{data_heading(column)} ({UNITS[column.unit]})" for column in table.columns]
    return ["seeds", *data, *(f"{group_heading(group)} (normalised score)" for group in table.groups)]


def data_heading(column: Column) -> str:
    """The name of the data, marked where they are not the benchmark's."""
    return column.data if column.stand_in is None else f"{column.data}, own file"


def group_heading(group: str) -> str:
    """What an average is of."""
    return AVERAGE if group == AVERAGE else f"{AVERAGE} of {group}"


def caption(table: ScoreTable) -> str:
    """What the numbers of a table are, in sentences, and what must be known of them."""
    return " ".join([explanation(table), *table.remarks])


def explanation(table: ScoreTable) -> str:
    """What the numbers of a table are, in sentences."""
    averages = "The average is that of the data's means; its deviation that of each seed's average."
    return " ".join([table.protocol.explanation, ABOUT_NUMBERS, *([averages] if table.groups else [])])


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
    return f"{f'**{mean}**' if entry.is_bold else mean}{deviation}{_in_markdown(notes_text(entry, unit))}"


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
    return bold + in_latex(rest) + in_latex(notes_text(entry, unit))


def in_latex(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(_LATEX.get(sign, sign) for sign in re.sub(r"\s+", " ", text))


# --- CSV ---


def comma_separated(tables: Sequence[ScoreTable]) -> str:
    """A line for each entry of each table, numbers in full; an average has the data `average` or `average of GROUP`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            for column, entry in zip(table.columns, row.entries, strict=True):
                writer.writerow(_csv_row(table, row, column, entry))
            writer.writerows(_csv_average(table, row, average) for average in row.averages)
    return file.getvalue()


def _csv_row(table: ScoreTable, row: Row, column: Column, entry: Entry) -> list[object]:
    numbers = [entry.mean, entry.deviation, len(entry.scores) if entry.planned else "", entry.planned or ""]
    return _csv_line(table, row, [column.data, column.unit], numbers, entry)


def _csv_average(table: ScoreTable, row: Row, average: Average) -> list[object]:
    pooled = [
        entry
        for entry, column in zip(row.entries, table.columns, strict=True)
        if (column.unit, column.group) == ("normalised", average.group) and entry.mean is not None and entry.planned
    ]
    seeds = [min(len(entry.scores) for entry in pooled), min(entry.planned for entry in pooled)] if pooled else ["", ""]
    return _csv_line(
        table, row, [group_heading(average.group), "normalised"], [average.mean, average.deviation, *seeds], average
    )


def _csv_line(
    table: ScoreTable, row: Row, where: Sequence[str], numbers: Sequence[object], entry: Entry | Average
) -> list[object]:
    published: list[object] = [None] * 5
    if entry.published is not None:
        number, difference = entry.published
        low, high = (None, None) if difference is None or difference.interval is None else difference.interval
        published = [*number, None if difference is None else difference.value, low, high]
    cells = [table.protocol.name, row.label, *where, *numbers]
    cells += ["yes" if entry.is_bold else "", "; ".join(entry.notes), *published, table.protocol.explanation]
    return ["" if each is None else each for each in cells]


def _cells(row: Row, table: ScoreTable) -> list[tuple[Entry | Average, Unit]]:
    entries: list[tuple[Entry | Average, Unit]] = [
        (entry, column.unit) for entry, column in zip(row.entries, table.columns, strict=True)
    ]
    return [*entries, *((average, "normalised") for average in row.averages)]
