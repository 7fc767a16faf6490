"""Builds the documentation site from the Markdown pages of the repository and the docstrings of the library.

The pages keep their folders (docs/, results/, benchmarks/), so that the links between them hold there and on the site;
the README is the home page. A warning of Sphinx, such as a link that leads nowhere, ends the build with exit status 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from api import Library

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SINGLE = ("CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff")
FOLDERS = ("docs", "results", "benchmarks")
KINDS = (".md", ".png", ".ipynb")
NAVIGATION = {
    "Start": ("Which method for which data <docs/index>", "docs/getting-started"),
    "Guides": (
        *(
            "docs/data",
            "docs/tasks",
            "docs/runs",
            "docs/ope",
            "docs/export",
            "docs/studies",
            "docs/environments",
            "docs/mazes",
        ),
        *("docs/collecting", "docs/simulator-check", "docs/trifinger"),
    ),
    "Tutorials": ("docs/tutorials/own_logs", "docs/tutorials/sweep_and_report", "docs/tutorials/new_method"),
    "Methods": ("docs/algorithms/diffcps", "docs/algorithms/*"),
    "The paper": ("docs/figures", "docs/theory"),
    "Results": ("Overview <results/README>", "results/*", "benchmarks/README", "benchmarks/*"),
    "Reference": ("api/index", "docs/architecture", "CONTRIBUTING", "CHANGELOG"),
}
"""Captions of the menu and their pages. A page that stands nowhere here is a warning."""


def stage(tree: Path) -> None:
    """Lays out what Sphinx reads."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in SINGLE:
        shutil.copy(ROOT / name, tree / name)
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in KINDS):
        target = tree / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tree / "index.md").write_text((ROOT / "README.md").read_text() + navigation())
    (tree / "api").mkdir()
    for name, text in Library(ROOT / "src" / "diffcps").pages().items():
        (tree / "api" / f"{name}.md").write_text(text)


def navigation() -> str:
    """The menu."""
    trees = []
    for caption, pages in NAVIGATION.items():
        trees.append(
            "\n".join(["", "```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *pages, "```", ""])
        )
    return "".join(trees)


def build(out: Path) -> int:
    """Writes the site to `out`/html; the exit status of Sphinx."""
    stage(out / "pages")
    shutil.rmtree(out / "html", ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "--fail-on-warning",
        "--quiet",
        "-j",
        str(os.cpu_count() or 1),
    ]
    command += ["-c", str(HERE), "-d", str(out / "doctrees"), str(out / "pages"), str(out / "html")]
    return subprocess.run(command).returncode


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="folder [build/docs]")
    out: Path = parser.parse_args().out.resolve()
    status = build(out)
    if status == 0:
        print(f"{out / 'html' / 'index.html'}; to search in it: python3 -m http.server --directory {out / 'html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
