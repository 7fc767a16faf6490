"""Sphinx's configuration of the documentation site; `build.py` beside it makes the tree of pages that it reads."""

from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

MATHML = "{http://www.w3.org/1998/Math/MathML}"
ElementTree.register_namespace("", MATHML.strip("{}"))
HERE = Path(__file__).parent
PYPROJECT = (HERE.parents[1] / "pyproject.toml").read_text()

project = "diffcps"
release = (re.search(r'^version = "(.*)"', PYPROJECT, re.MULTILINE) or ["", ""])[1]
extensions = ["myst_nb"]  # Markdown, and notebooks with what they showed when they were run
nb_execution_mode = "off"
root_doc = "index"
highlight_language = "text"
smartquotes = False  # two hyphens stay two: they are flags

# Markdown as GitHub shows it: anchors of headings, and formulas between dollars or in a fence ```math.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]

# The reference: an argument to a line where a signature is long, and the last part of a name that leads somewhere.
add_module_names = False
maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True

html_theme = "sphinx_book_theme"
html_title = "diffcps"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # light or dark as the browser is
html_theme_options = {
    "footer_content_items": [],
    "navbar_persistent": [],  # the search stands in the menu
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_source_button": False,
}
html_math_renderer = "mathml"


def formula(translator, node: nodes.Element) -> None:
    """MathML, which browsers draw by themselves: no program and no font is fetched."""
    block = isinstance(node, nodes.math_block)
    try:
        text = latex2mathml.tex2mathml(str(node.astext()), as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning(f"formula: {error}", location=node)
        raise nodes.SkipNode from None
    text = re.sub(r"&(?!amp;|lt;|gt;)\w+;", lambda name: html.unescape(name[0]), text)  # names that XML does not know
    tree = ElementTree.fromstring(text)
    for part in list(tree.iter(f"{MATHML}munderover")):
        accent_beside_index(part)
    rendered = ElementTree.tostring(tree, encoding="unicode")
    translator.body.append(f'<div class="formula">{rendered}</div>' if block else rendered)
    raise nodes.SkipNode


def accent_beside_index(part: ElementTree.Element) -> None:
    """docutils puts the index of an accented letter below it, where sums have theirs."""
    base, index, accent = part
    if accent.get("stretchy") != "false":
        return
    part.tag = f"{MATHML}msub"
    accented = ElementTree.Element(f"{MATHML}mover", accent="true")
    accented.extend([base, accent])
    part[:] = [accented, index]


def setup(app) -> None:
    """Sphinx calls it."""
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
