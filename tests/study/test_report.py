"""The report of a study as files: what must be in it, what must not, and the page in a browser."""

from __future__ import annotations

import csv
import html
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet
import pytest

from diffcps.cli.main import main
from diffcps.evaluation.statistics import Estimate, Interval
from diffcps.plots import BLUE
from diffcps.study.charts import Axes, Bar, Level, Line, Style, interval_chart, lighter, line_chart
from diffcps.study.plan import Cell
from diffcps.study.report import write_report
from diffcps.training.members import Member
from diffcps.types import UserError
from tests.browser import seen, with_chromium
from tests.study.fakes import Fake, write_study

PLAN = """
[study]
name = "a <study> & more"
seeds = [0, 1, 2]
updates = 60
eval_every = 20
log_every = 10
episodes = 2

[final]
episodes = 4
also_act = ["sample"]

[data.hopper]
dataset = "hopper.hdf5"
env = "Hopper-v5"

[data.walker]
dataset = "walker.hdf5"
env = "Hopper-v5"

[methods.diffcps]
kappa = [0.02, 0.04]

[methods."<b>&"]
method = "bc"

[methods.td3_bc]

[methods.iql]
"""
"""The name of a method needs escaping in each of the files."""
FILES = {"report.html", "tables.md", "tables.tex", "tables.csv", "results.parquet"}


def score(cell: Cell, member: Member, update: int) -> float:
    """100 for each update of twenty, 1000 in new episodes; and 10 for each seed."""
    return (5.0 * update if update else 1000.0) + 10.0 * member.seed


def fake(cell: Cell) -> Fake | None:
    """walker/diffcps is half done, walker/td3_bc has failed; the first has another library than the others."""
    if cell.name == "walker/td3_bc":
        return None
    if cell.name == "walker/diffcps":
        return Fake(score, updates=40)
    return Fake(score, commit="fedcba9876" if cell.name == "hopper/diffcps" else "0123456789")


FAILED = {"walker/td3_bc": "walker.hdf5: has no <actions>"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with its report."""
    folder = tmp_path_factory.mktemp("study") / "out"
    write_study(folder, PLAN, fake, FAILED)
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    return (out / "report.html").read_text("utf-8")


class Elements(HTMLParser):
    """Every tag with its attributes and its text, and whether all that opened were closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(" ".join(data.split()))


def elements(page: str) -> Elements:
    parser = Elements()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def table_rows(page: str, section: str) -> dict[str, list[str]]:
    """The texts of a section's table, by the label of the row."""
    (found,) = re.findall(rf'<section id="{section}".*?</section>', page, re.S)
    rows = {}
    for line in re.findall(r"<tr.*?</tr>", found, re.S)[1:]:
        cells = [html.unescape(re.sub(r"<[^>]+>", " ", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", line, re.S)]
        label, *others = (" ".join(cell.split()) for cell in cells)
        rows[label] = others
    return rows


def test_everything_is_written_and_nothing_is_left(out):
    assert {path.name for path in out.iterdir() if path.is_file()} == FILES | {"study.toml"}


def test_the_page_is_well_formed_and_asks_for_nothing(page):
    found = elements(page)
    for word in ("http://", "https://", "src=", "@import", "url(", "//cdn", "fetch(", "XMLHttp"):
        assert word not in page
    links = [attributes["href"] for tag, attributes in found.tags if tag in ("a", "link") and "href" in attributes]
    assert [link for link in links if link and link.startswith(("/", "data:", "file:"))] == ["data:,"]
    assert not {tag for tag, _ in found.tags} & {"img", "iframe", "object", "embed", "base", "image", "use"}
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [{}]


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(page):
    found = elements(page)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes.get("href") or "" for tag, attributes in found.tags if tag == "a"]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    labelled = [name for _, each in found.tags for name in (each.get("aria-labelledby") or "").split()]
    assert labelled and set(labelled) <= set(ids)


def test_links_lead_to_files_of_the_study(out, page):
    targets = [attributes.get("href") or "" for tag, attributes in elements(page).tags if tag == "a"]
    files = [target for target in targets if not target.startswith("#")]
    assert {"study.toml", "tables.md", "hopper/diffcps/config.json", "hopper/td3_bc/evaluations.jsonl"} <= set(files)
    assert any(target.startswith("hopper/diffcps/evaluations/") for target in files)
    for target in files:
        assert (out / unquote(target)).exists(), target


def test_names_are_texts(page):
    assert "<b>&<" not in page and "<b>& " not in page and "&lt;b&gt;&amp;" in page
    assert "a &lt;study&gt; &amp; more" in page and "<study>" not in page
    assert "has no &lt;actions&gt;" in page
    assert "<b>&" in elements(page).texts["span"]


def test_every_table_and_chart_is_there(page):
    found = elements(page)
    sections = [attributes.get("id") for tag, attributes in found.tags if tag == "section"]
    assert sections == [
        *("unfinished", "last", "best", "mean_of_last", "offline_selected", "final", "final-sample", "aggregates"),
        *("curves", "constraints", "time", "origin"),
    ]
    charts = [name for _, each in found.tags if "aria-labelledby" in each for name in [each["aria-labelledby"] or ""]]
    assert [name.split()[0] for name in charts] == [
        *("iqm-title", "mean-title", "profile-title", "curve0-title", "curve1-title"),
        *("metric0-title", "metric1-title", "metric2-title", "metric3-title"),
    ]
    assert page.count("<desc ") == page.count('<svg class="chart"') == len(charts)
    assert page.count('type="checkbox"') == 5
    for number in range(5):
        assert f"body:has(#show{number}:not(:checked)) svg.chart .row{number}" in page
        assert re.search(rf'<g class="row{number} c{number} d0">', page)


def test_numbers_of_the_tables(page):
    # three seeds ten apart: 300, 310, 320 at the end, a tenth of it normalised; deviation sqrt(2/3)
    last = table_rows(page, "last")
    assert last["<b>&"] == ["3", "31.0 ± 0.8", "31.0 ± 0.8", "31.0 ± 0.8"]
    assert last["td3_bc"] == ["3", "31.0 ± 0.8", "– failed", "31.0 ± 0.8 1 of 2 data"]
    assert last["diffcps kappa=0.02"][2:] == ["– unfinished: 40 of 60 updates", "31.0 ± 0.8 1 of 2 data"]
    assert last["the data's mean return"] == ["–", "40.0", "40.0", "40.0"]
    assert table_rows(page, "mean_of_last")["<b>&"][1] == "21.0 ± 0.8"  # of 100 200 300
    final = table_rows(page, "final")
    assert final["<b>&"][1] == final["diffcps kappa=0.04"][1] == "101.0 ± 0.8"
    sample = table_rows(page, "final-sample")
    assert sample["diffcps kappa=0.02"][1] == "96.0 ± 0.8" and "<b>&" not in sample
    assert "<b>31.0</b> ± 0.8" in page


def test_what_is_unfinished_is_named_and_what_failed_has_its_line(page):
    assert table_rows(page, "unfinished") == {
        "walker/diffcps": ["unfinished: 40 of 60 updates", ""],
        "walker/td3_bc": ["failed", "walker.hdf5: has no <actions>"],
    }
    assert "6 of 8 runs are done." in page


def test_protocol_and_seeds_stand_beside_the_numbers(page):
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    for sentence in (
        "The evaluation after the last update (60): 2 episodes per seed.",
        "4 new episodes per seed, from start seeds 1000 to 1003, with the last checkpoint; each method acts by its own",
        "New episodes, normalised scores on hopper, walker; 3 seeds on each.",
        "with 3 they hold a mean in 89% of cases at best. Left out: diffcps kappa=0.02, diffcps kappa=0.04, td3_bc "
        "(without a score on walker).",
        "The row that the others were to be compared with is not among them.",
        "Mean of 3 seeds, with a band of one deviation. Dashed: the data&#39;s mean return.",
        "Dashed: kappa = 0.02, 0.04.",
    ):
        assert sentence in text, sentence


def test_where_numbers_come_from(page):
    text = html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))
    for fact in (
        *("fedcba9876", "0123456789", "The runs were made in 2 ways.", "cpu x 2", "jax 0.10.2"),
        *("hopper.hdf5", "abc" * 21 + "d", "10,000", "0 and 1000", "kappa = 0.02 0.04"),
        "diffcps study run study.toml --out DIR (hopper/diffcps)",
    ):
        assert fact in text, fact
    time = table_rows(page, "time")
    assert time["hopper/diffcps"] == ["done", "6", "50", "0.0003333", "cpu x 2"]
    assert time["walker/td3_bc"] == ["failed", "3", "–", "–", "–"]


def test_the_files_beside_it_have_the_same_numbers(out):
    assert r"| \<b\>\& | 3 | **31.0** ± 0.8 |" in (out / "tables.md").read_text()
    assert r"\textless{}b\textgreater{}\& & 3 & \textbf{31.0} $\pm$ 0.8 &" in (out / "tables.tex").read_text()
    lines = list(csv.DictReader((out / "tables.csv").read_text().splitlines()))
    (line,) = (each for each in lines if (each["protocol"], each["row"], each["data"]) == ("last", "<b>&", "hopper"))
    assert float(line["mean"]) == pytest.approx(31.0) and (line["seeds"], line["planned_seeds"]) == ("3", "3")
    table = pyarrow.parquet.read_table(out / "results.parquet")
    # diffcps, of six members: 3 evaluations, 2, and new episodes by two rules; 5 runs of three members
    assert table.num_rows == 6 * 3 + 6 * 2 + 6 * 2 + 5 * 3 * (3 + 1)
    assert set(table["data_normalised"].to_pylist()) == {40.0}


def test_the_report_is_the_same_again(out, page):
    tables = (out / "tables.csv").read_bytes()
    assert main(["study", "report", str(out), "--reference", "<b>&"]) == 0
    again = (out / "report.html").read_text("utf-8")
    assert again != page and "The others are compared with &lt;b&gt;&amp;." in again
    assert 'aria-labelledby="improvement-title' in again and "iql 0.50" in again
    write_report(out)
    assert (out / "report.html").read_text("utf-8") == page and (out / "tables.csv").read_bytes() == tables


def test_bad_words_are_one_line(out, tmp_path, capsys):
    assert main(["study", "report", str(out), "--reference", "nobody"]) == 2
    assert "the study has no row nobody to compare with; its rows are diffcps kappa=0.02" in capsys.readouterr().err
    assert main(["study", "report", str(tmp_path)]) == 2
    assert "is no folder of a study" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["jinja2", "pyarrow", "scipy"])
def test_a_missing_package_is_named_with_its_extra(module, out, page, tmp_path, monkeypatch):
    shutil.copytree(out, tmp_path / "out")
    for name in FILES:
        (tmp_path / "out" / name).unlink()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"studies need {module}, .*: pip install 'diffcps\[studies\]'"):
        write_report(tmp_path / "out")
    assert not FILES & {path.name for path in (tmp_path / "out").iterdir()}


def test_without_references_there_is_a_sentence_in_the_place_of_intervals(tmp_path):
    text = PLAN.replace("seeds = [0, 1, 2]", "seeds = [4]")
    write_study(tmp_path, text, lambda cell: Fake(score, reference=None))
    page = write_report(tmp_path).read_text("utf-8")
    assert (
        "There are no aggregates over the data, intervals or profiles of new episodes: no data have normalised" in page
    )
    assert "There is no average over the data" in page
    assert 'aria-labelledby="iqm' not in page and 'id="unfinished"' not in page
    assert table_rows(page, "last")["td3_bc"] == ["1", "340", "340"]
    assert "One seed." in page and 'class="band"' not in page


def test_a_study_that_has_not_begun_has_a_report(tmp_path):
    write_study(tmp_path, PLAN, lambda cell: None)
    page = write_report(tmp_path).read_text("utf-8")
    elements(page)
    assert "0 of 8 runs are done." in page and "No run has a score yet." in page and "No run has begun." in page
    assert table_rows(page, "last")["td3_bc"] == ["3", "– not begun", "– not begun"]
    assert pyarrow.parquet.read_table(tmp_path / "results.parquet").num_rows == 0


def test_a_study_without_environment_has_constraints_and_no_scores(tmp_path):
    write_study(tmp_path, PLAN, lambda cell: Fake(score, environment=None))
    page = write_report(tmp_path).read_text("utf-8")
    assert table_rows(page, "last")["td3_bc"] == ["3", "– no environment", "– no environment"]
    assert "No run has a score yet." in page and 'id="constraints"' in page


# --- Charts ---


def places(svg: str, which: str) -> list[tuple[float, float]]:
    (path,) = re.findall(rf'<path class="{which}" d="M([^"Z]*)', svg)
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path.split("L"))]


def test_lines_stand_where_their_numbers_are():
    line = Line("a", Style(0), [0.0, 50.0, 100.0], [0.0, 10.0, 5.0], [-1.0, 9.0, 4.0], [1.0, 11.0, 6.0])
    svg = line_chart("n", "<t>", "d & e", Axes("x", "y"), [line], [Level("level", 5.0, None)])
    points = places(svg, "line")
    assert [x for x, _ in points] == [48.0, 216.0, 384.0]  # the axis goes from 48 to 384
    zero, ten, five = (y for _, y in points)
    assert zero - five == pytest.approx(five - ten, abs=0.11) and ten < five < zero
    assert len(places(svg, "band")) == 6
    assert re.findall(r'<path d="M48 ([\d.]+)H384"/>', svg) == [f"{five:.1f}"]
    assert "&lt;t&gt;" in svg and "d &amp; e" in svg


def test_logarithmic_axes():
    line = Line("a", Style(0), [0.0, 1.0, 2.0], [1.0, 10.0, 100.0], [-5.0, 1.0, 1.0], [2.0, 20.0, 200.0])
    svg = line_chart("n", "t", "d", Axes("x", "y", True), [line])
    one, ten, hundred = (y for _, y in places(svg, "line"))
    assert one - ten == pytest.approx(ten - hundred, abs=0.11)
    assert max(y for _, y in places(svg, "band")) <= 236.0  # what a logarithm cannot show stays inside
    assert {"1", "10", "100"} <= set(re.findall(r">([\d.]+)</text>", svg))


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e6, 1e6 + 1], [-3e-5, 4e-5], [-1e9, 1e9]])
def test_axes_of_odd_numbers(values):
    line = Line("a", Style(0), [float(number) for number in range(len(values))], values, None, None)
    svg = line_chart("n", "t", "d", Axes("x", "y"), [line])
    assert "nan" not in svg and "inf" not in svg
    ticks = re.findall(r'text-anchor="end">(-?[\d.e-]+[kM]?)</text>', svg)
    assert 2 <= len(ticks) <= 8
    assert all(26 <= y <= 236 for _, y in places(svg, "line"))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 100.0], ["0", "20", "40", "60", "80", "100"]),
        ([0.9, 1.6], ["1.0", "1.2", "1.4", "1.6"]),
        ([1.0, 1.0012], ["1.0000", "1.0005", "1.0010"]),
        ([0.0, 30_000.0], ["0", "10k", "20k", "30k"]),
        ([0.0, 2e-5], ["0", "5e-06", "1e-05", "1.5e-05", "2e-05"]),
    ],
)
def test_ticks_can_be_told_apart(values, texts):
    line = Line("a", Style(0), [0.0, 1.0], values, None, None)
    svg = line_chart("n", "t", "d", Axes("x", "y"), [line])
    ticks = [text for text in re.findall(r'x="43.0" y="[\d.]+" text-anchor="end">([^<]*)<', svg)]
    assert [tick for tick in ticks if float(tick.rstrip("k")) >= 0] == texts


def test_intervals_stand_where_their_numbers_are():
    bars = [
        Bar("first", Style(0), Estimate(5.0, Interval(0.0, 10.0)), 1),
        Bar("a name that is too long for one line of a chart", Style(7), Estimate(10.0, None), 2),
    ]
    svg = interval_chart("n", "t", "d", "x", bars, 5.0)
    ((low, high),) = re.findall(r'class="interval" d="M([\d.]+) [\d.]+H([\d.]+)"', svg)
    five, ten = (float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)"', svg))
    assert five == pytest.approx((float(low) + float(high)) / 2, abs=0.11) and ten == float(high)
    assert f'class="level" d="M{five:.1f}' in svg
    assert "5.0 [0.0, 10.0]" in svg and ">10.00<" in svg
    assert ">a name that is too long for one line of<" in svg and ">a chart<" in svg


def test_rows_of_the_same_colour_have_other_dashes():
    assert [Style(number).classes for number in (0, 5, 6, 23)] == [
        "row0 c0 d0",
        "row5 c5 d0",
        "row6 c0 d1",
        "row23 c5 d3",
    ]
    assert lighter("#000000") == "#404040" and lighter(BLUE) != BLUE


# --- In a browser ---


@pytest.mark.slow
@with_chromium
def test_the_page_in_a_browser(out, page, tmp_path):
    found = seen((out / "report.html").as_uri(), tmp_path / "profile")
    assert found.console == []
    assert found.page.count('<button type="button">') == 2
    # the same with a request, an error, and all rows hidden: what is asserted above can fail
    shown = 'getComputedStyle(document.querySelector("svg.chart .row0")).display'
    program = f"""<script>
      const before = {shown};
      document.querySelectorAll("button")[1].click();
      document.title = `${{before}} ${{{shown}}}`;
      console.error("told");
    </script><img src="http://example.org/picture.png">"""
    other = tmp_path / "other.html"
    other.write_text(page.replace("</body>", f"{program}</body>"))
    found = seen(other.as_uri(), tmp_path / "profile")
    assert any("http://example.org/picture.png" in line for line in found.console)
    assert any("told" in line for line in found.console)
    assert "<title>inline none</title>" in found.page
