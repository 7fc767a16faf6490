"""The API reference as Markdown pages, from the source as text: nothing is imported, annotations stand as written."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

SINGLE = ("types", "optim", "evaluation.statistics")
"""Modules with a page of their own, beside `diffcps` itself."""
PACKAGES = ("rl", "diffusion", "networks", "policies", "algorithms")
"""Packages of which every module has a page."""
LONGEST_VALUE = 100
"""Characters of a constant's value that stand on its line; a longer one stands below, as in the source."""

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
Documented = ast.FunctionDef | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class Source:
    """A module as text."""

    name: str
    tree: ast.Module
    documented: frozenset[str] = field(repr=False)
    """Full names to which annotations may lead."""

    @property
    def imported(self) -> dict[str, str]:
        """Names that come from elsewhere in the library, in full."""
        nodes = [node for node in self.tree.body if isinstance(node, ast.ImportFrom)]
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in nodes for alias in node.names}


class InFull(ast.NodeTransformer):
    """Names of the library in full, where there is something to lead to; the site shows their last part."""

    def __init__(self, source: Source) -> None:
        own = {node_name(node): f"{source.name}.{node_name(node)}" for node in definitions(source.tree.body)}
        names = source.imported | own
        self.names = {name: full for name, full in names.items() if full in source.documented}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse(self.names.get(node.id, node.id), mode="eval").body

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return (
            ast.Constant(node.value.strip()) if isinstance(node.value, str) else node
        )  # " n": the space is for linters


def node_name(node: Definition) -> str:
    """What a definition defines."""
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    return ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else node.name


def definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    """The public ones; of an overloaded function the last, of what differs for type checkers what runs."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from definitions(node.orelse)
        elif isinstance(node, Definition) and not ast.unparse(node).startswith("@overload"):
            if not node_name(node).startswith("_") or node_name(node) == "__call__":
                yield node


# --- Words ---


def markdown(text: str) -> str:
    """A docstring, which is Markdown but for stars and underscores in its formulas; pages that it names are links."""
    paragraphs = re.split(r"(\n\s*\n)", text)
    return "".join(part if part.startswith("    ") else _plain(part) for part in paragraphs)


def _plain(paragraph: str) -> str:
    parts = re.split(r"(`[^`]*`)", paragraph)
    for index in range(0, len(parts), 2):
        escaped = re.sub(r"([*_<$\[\]|])", r"\\\1", parts[index])
        parts[index] = re.sub(
            r"docs/[\w/\\-]+\.md", lambda match: f"[{match[0]}](/{match[0].replace(chr(92), '')})", escaped
        )
    return "".join(parts)


def doc(node: Documented) -> str:
    """The docstring of a module, class or function, as Markdown."""
    return markdown(ast.get_docstring(node) or "")


def field_docs(body: list[ast.stmt]) -> dict[int, str]:
    """The words below an assignment, by its line."""
    found: dict[int, str] = {}
    for node, below in pairwise(body):
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[node.lineno] = markdown(inspect.cleandoc(below.value.value))
    return found


# --- Entries ---


def directive(kind: str, argument: str, options: dict[str, str], body: str, depth: int) -> str:
    """A MyST directive; the outer of two has the longer fence."""
    fence = "`" * (8 - depth)
    lines = [f"{fence}{{py:{kind}}} {argument}", *(f":{name}: {value}" for name, value in options.items())]
    return "\n".join([*lines, "", body, fence, ""])


def signature(node: ast.FunctionDef, source: Source, without_first: bool = False) -> str:
    """Arguments and result of a function."""
    arguments: ast.arguments = InFull(source).visit(ast.parse(ast.unparse(node)).body[0]).args
    if without_first:
        del (arguments.posonlyargs or arguments.args)[0]
    result = f" -> {in_full(node.returns, source)}" if node.returns and node.name != "__init__" else ""
    return f"({ast.unparse(arguments)}){result}"


def in_full(node: ast.expr, source: Source) -> str:
    """An annotation with the names of the library in full."""
    return ast.unparse(InFull(source).visit(ast.parse(ast.unparse(node), mode="eval").body))


def entry(node: Definition, source: Source, words: str, depth: int = 0, options: dict[str, str] | None = None) -> str:
    """One name of a module or of a class; `words` are those below an assignment."""
    options = options or {}
    if isinstance(node, ast.ClassDef):
        return class_entry(node, source, options)
    if isinstance(node, ast.FunctionDef):
        return function_entry(node, source, depth, options)
    kind = "attribute" if depth else "data"
    if isinstance(node, ast.AnnAssign):
        options["type"] = in_full(node.annotation, source)
    value = ast.unparse(node.value) if node.value else ""
    if value.startswith("field(") or not value:
        pass
    elif len(value) <= LONGEST_VALUE:
        options["value"] = value
    else:
        language = "text" if isinstance(node.value, ast.Constant) else "python"
        words = f"{words}\n\n```{language}\n{long_value(node.value)}\n```"
    return directive(kind, node_name(node), options, words, depth)


def long_value(node: ast.expr | None) -> str:
    """A text as it is; everything else with an item to a line."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        items = [
            f"{ast.unparse(key)}: {ast.unparse(value)}" if key else f"**{ast.unparse(value)}" for key, value in pairs
        ]
        return "\n".join(["{", *(f"    {item}," for item in items), "}"])
    return ast.unparse(node) if node else ""


def function_entry(node: ast.FunctionDef, source: Source, depth: int, options: dict[str, str]) -> str:
    """A function, method or property."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if "property" in decorators:
        if node.returns:
            options["type"] = in_full(node.returns, source)
        return directive("property", node.name, options, doc(node), depth)
    kind = "method" if depth else "function"
    options |= {name: "" for name in ("staticmethod", "classmethod") if name in decorators}
    bound = bool(depth) and "staticmethod" not in decorators
    return directive(kind, node.name + signature(node, source, bound), options, doc(node), depth)


def class_entry(node: ast.ClassDef, source: Source, options: dict[str, str]) -> str:
    """A class with its fields, properties and methods, in the order of the source."""
    start = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    bases = [f"`{ast.unparse(base)}`" for base in node.bases]
    kinds = [*(["frozen dataclass"] if "dataclass(frozen=True)" in decorators else []), *bases]
    words = [f"*{', '.join(kinds)}*" if not bases else ", ".join(kinds)] if kinds else []
    words += [doc(node), *(doc(item) for item in start)]
    docs = field_docs(node.body)
    members = [entry(item, source, docs.get(item.lineno, ""), 1) for item in definitions(node.body)]
    arguments = signature(start[0], source, True) if start else ""
    body = "\n\n".join([text for text in words if text] + members)
    return directive("class", node.name + arguments, options, body, 0)


# --- Pages ---


def page(source: Source) -> str:
    """A module: its docstring, then its public names in the order of the source."""
    docs = field_docs(source.tree.body)
    entries = [entry(node, source, docs.get(node.lineno, "")) for node in definitions(source.tree.body)]
    return "\n\n".join([heading(source.name), doc(source.tree), *entries]) + "\n"


def heading(name: str) -> str:
    """The title of a module's page, and the module."""
    return f"# {name.removeprefix('diffcps.')}\n\n```{{py:module}} {name}\n```"


def contents(names: list[str]) -> str:
    """A list of pages that leads to them."""
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *names, "```", ""])


class Library:
    """The source of the library, and the pages made of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        modules = [f"diffcps.{name}" for name in SINGLE]
        for package in PACKAGES:
            files = sorted((root / package).glob("*.py"))
            modules += [f"diffcps.{package}.{path.stem}" for path in files if path.stem != "__init__"]
        self.modules = modules
        self.exported = {alias: self.origin("diffcps", alias) for alias in self.public("diffcps")}
        names = {f"{name}.{node_name(node)}" for name in modules for node in definitions(self.parse(name).body)}
        self.documented = frozenset(names | {".".join(origin) for origin in self.exported.values()})

    def parse(self, name: str) -> ast.Module:
        """A module or package by its full name."""
        path = self.root.joinpath(*name.split(".")[1:])
        return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())

    def source(self, name: str) -> Source:
        """With the names to which its annotations may lead."""
        return Source(name, self.parse(name), self.documented)

    def public(self, name: str) -> list[str]:
        """`__all__` of a package."""
        tree = self.parse(name)
        assigned = [node for node in tree.body if isinstance(node, ast.Assign) and node_name(node) == "__all__"]
        return ast.literal_eval(assigned[0].value)

    def origin(self, module: str, name: str) -> tuple[str, str]:
        """Where a name that a package passes on is defined."""
        imported = Source(module, self.parse(module), frozenset()).imported
        return self.origin(*imported[name].rsplit(".", 1)) if name in imported else (module, name)

    def package_page(self, package: str) -> str:
        """A package: its docstring and its modules."""
        name = f"diffcps.{package}"
        modules = [f"{module.rsplit('.', 1)[1]} <{module}>" for module in self.modules if module.startswith(f"{name}.")]
        return "\n\n".join([heading(name), doc(self.parse(name)), contents(modules)])

    def top_page(self) -> str:
        """`import diffcps`: what it passes on, in full where no other page has it."""
        tree = self.parse("diffcps")
        words = ast.get_docstring(tree) or ""
        summary, example = words.split("\n\n", 1)
        parts = ["# diffcps", "```{py:module} diffcps\n```", markdown(summary), f"```python\n{example}\n```"]
        elsewhere = []
        for name in self.public("diffcps"):
            module, own = self.exported[name]
            if module in self.modules:
                elsewhere.append(f"{{py:obj}}`~{module}.{own}`")
                continue
            source = self.source(module)
            node = next(node for node in definitions(source.tree.body) if node_name(node) == own)
            parts.append(entry(node, source, "", options={"canonical": f"{module}.{own}"}))
        parts.append(f"Also {', '.join(elsewhere)}.")
        return "\n\n".join(parts) + "\n"

    def pages(self) -> dict[str, str]:
        """The text of every page by its name."""
        names = ["diffcps", *(f"diffcps.{name}" for name in (*SINGLE, *PACKAGES))]
        words = (
            "From the docstrings: `import diffcps`, and what methods are made of. Sizes of arrays stand in their types."
        )
        found = {"index": f"# API reference\n\n{words}\n\n{contents(names)}", "diffcps": self.top_page()}
        found |= {f"diffcps.{package}": self.package_page(package) for package in PACKAGES}
        return found | {name: page(self.source(name)) for name in self.modules}
