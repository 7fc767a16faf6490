"""The documentation site: it builds without a warning, nothing in it leads nowhere, and nothing in it is fetched."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import diffcps
from diffcps.algorithms import ALGORITHMS
from tests.browser import Seen, seen, with_chromium

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("sphinx_book_theme") is None, reason="the extra docs is missing: run make docs"
    ),
]
ELSEWHERE = re.compile(r"(https?:)?//")


class Page(HTMLParser):
    """What a page leads to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "index", "search", "next", "prev", "author"):
            self.loaded.append(given["href"])
        self.loaded += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]


def sphinx(pages: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Builds a tree of pages with the configuration of the site."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "--fail-on-warning", "--quiet", "-c", SITE, pages, out]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, SITE / "build.py", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    return out / "html"


@pytest.fixture(scope="module")
def pages(html) -> dict[Path, Page]:
    paths = [path for path in sorted(html.rglob("*.html")) if "_static" not in path.relative_to(html).parts]
    return {path: Page(path.read_text()) for path in paths}


def dead(pages: dict[Path, Page]) -> list[str]:
    """Links, pictures, styles and programs that are not there, and anchors that their page lacks."""
    found = []
    for path, page in pages.items():
        for address in page.links + page.loaded:
            if ELSEWHERE.match(address) or address.startswith(("mailto:", "data:")):
                continue
            file, anchor = urldefrag(address.split("?")[0] if "#" not in address else address)
            target = (path.parent / unquote(file.split("?")[0])).resolve() if file else path
            if not target.is_file():
                found.append(f"{path.name}: {address}")
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                found.append(f"{path.name}: {address}")
    return found


def test_every_page_of_the_repository_is_there(html):
    sources = [path for folder in ("docs", "results", "benchmarks") for path in (ROOT / folder).rglob("*")]
    sources = [path for path in sources if path.suffix in (".md", ".ipynb")]
    names = {path.relative_to(ROOT).with_suffix(".html") for path in sources}
    names |= {Path("index.html"), Path("CHANGELOG.html"), Path("CONTRIBUTING.html")}
    assert len(names) >= 50 and [name for name in names if not (html / name).is_file()] == []


def test_nothing_leads_nowhere(pages):
    assert sum(len(page.links) for page in pages.values()) > 5000
    assert dead(pages) == []


def test_nothing_is_fetched(html, pages):
    assert [f"{path.name}: {at}" for path, page in pages.items() for at in page.loaded if ELSEWHERE.match(at)] == []
    fetched = re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])(?:https?:)?//")
    assert [path.name for path in html.rglob("*.css") if fetched.search(path.read_text())] == []


def test_faults_are_found(tmp_path):
    first, second = tmp_path / "first.html", tmp_path / "second.html"
    text = '<a href="second.html#there">1</a><a href="second.html#not">2</a><a href="#not">3</a><img src="no.png">'
    first.write_text(f'{text}<a href="third.html">4</a><script src="//example.org/a.js"></script>')
    second.write_text('<h1 id="there">Here</h1>')
    pages = {path: Page(path.read_text()) for path in (first, second)}
    assert {line.split()[1] for line in dead(pages)} == {"second.html#not", "#not", "no.png", "third.html"}
    assert ELSEWHERE.match(pages[first].loaded[-1])


FAULTS = """# A page

[a page](nowhere.md), [an anchor](#nowhere), ![a picture](nowhere.png)

```math
\\nosuchmacro x
```
"""


def test_a_warning_ends_the_build(tmp_path):
    (tmp_path / "index.md").write_text(FAULTS)
    done = sphinx(tmp_path, tmp_path / "html")
    assert done.returncode == 1
    complaints = [line for line in done.stderr.splitlines() if "WARNING" in line]
    for what in ("nowhere.md", "'nowhere'", "nowhere.png", "nosuchmacro"):
        assert any(what in line for line in complaints), done.stderr


# --- The reference ---


def test_the_reference_has_every_public_name_and_every_field(html, pages):
    assert {f"diffcps.{name}" for name in diffcps.__all__ if getattr(diffcps, name).__module__ != "diffcps.types"} <= (
        pages[html / "api" / "diffcps.html"].anchors
    )
    for name, method in ALGORITHMS.items():
        module = f"diffcps.algorithms.{name}"
        fields = {f"{module}.Config.{field.name}" for field in dataclasses.fields(method.Config)}
        assert pages[html / "api" / f"{module}.html"].anchors >= fields | {f"{module}.make", f"{module}.METRICS"}


def test_the_reference_has_words_and_types(html):
    def words(name: str) -> str:
        text = re.sub("<[^>]*>", "", (html / "api" / f"diffcps.{name}.html").read_text())
        return re.sub(r"\s+", " ", unescape(text))

    assert "kappa: Real = 0.05" in words("algorithms.diffcps")
    assert "Bound kappa on the denoising loss L_c, averaged over action dimensions" in words("algorithms.diffcps")
    assert "x0: Float[Array, '*b d']" in words("diffusion.process")
    assert "estimate(" in words("evaluation.statistics") and "Rows in the source." in words("types")


# --- In a browser ---


@pytest.fixture(scope="module")
def server(html) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(html))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


def errors(found: Seen) -> list[str]:
    """What the console says, but for what the theme tells about itself."""
    return [line for line in found.console if "[PST]:" not in line]


PROBE = """<script>addEventListener("load", () => {
  const size = (name) => document.querySelector(name).getBoundingClientRect();
  document.title = ["mfrac", "msub", "math"].map((name) => `${size(name).height > size("mi").height}`).join(" ")
    + ` ${document.documentElement.scrollWidth <= innerWidth}`;
})</script></body>"""


@with_chromium
@pytest.mark.parametrize("width", [500, 1280])
def test_formulas_are_drawn(html, server, tmp_path, width):
    page = html / "docs" / "algorithms" / "diffcps.html"
    other = page.with_name(f"probe{width}.html")
    other.write_text(page.read_text().replace("</body>", PROBE))
    found = seen(f"{server}/docs/algorithms/{other.name}", tmp_path / "profile", f"--window-size={width},900")
    other.unlink()
    assert errors(found) == []
    assert (
        "<title>true true true true</title>" in found.page
    )  # as high as such things are; nothing is wider than the page


@with_chromium
@pytest.mark.parametrize("page", ["index.html", "api/diffcps.types.html", "results/mazes.html"])
def test_pages_open_without_an_error(server, tmp_path, page):
    assert errors(seen(f"{server}/{page}", tmp_path / "profile")) == []


@with_chromium
def test_the_search_finds_something(server, tmp_path):
    found = seen(f"{server}/search.html?q=multiplier", tmp_path / "profile")
    assert errors(found) == []
    assert "docs/algorithms/diffcps.html" in found.page and "api/diffcps.rl.dual.html" in found.page
