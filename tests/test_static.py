"""The architecture, read from the source: who may import whom, what may not be imported at all, what must be said."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "diffcps"
FILES = sorted(SOURCE.rglob("*.py"))

# Room of the library -> the other rooms that it may import (docs/architecture.md, "Layout"). Nothing points up.
MATHEMATICS = {"rl", "diffusion", "networks", "optim"}
FILES_AND_PICTURES = {"storage", "plots", "types"}
BELOW_RECORDS = {"algorithms", "tasks", "envs", "training", "evaluation", "storage", "types"}
BELOW_RUN = BELOW_RECORDS | {"records", "presets", "readers", "data"} | FILES_AND_PICTURES
BELOW_PAPER = {"run", "collect", "simulator", "policies"} | BELOW_RUN | MATHEMATICS
MAY_IMPORT = {
    "types": set(),
    "storage": {"types"},
    "plots": {"storage", "types"},
    "rl": {"types"},
    "diffusion": {"types"},
    "networks": {"types"},
    "optim": {"types"},
    "policies": {"rl", "diffusion", "networks", "optim", "types"},
    "algorithms": MATHEMATICS | {"policies", "types"},
    "tasks": {"types"},
    "readers": {"tasks", "types"},
    "data": {"readers", "tasks"} | FILES_AND_PICTURES,
    "envs": {"tasks", "types"},
    "training": {"storage", "types"},
    "evaluation": {"envs", "tasks", "storage", "types"},
    "collect": {"envs", "evaluation", "readers", "data", "tasks", "rl", "networks", "policies", "optim", "training"}
    | FILES_AND_PICTURES,
    "simulator": {"data", "envs"} | FILES_AND_PICTURES,
    "presets": {"types"},
    "records": BELOW_RECORDS,
    "run": BELOW_RUN | {"optim"},
    "ope": BELOW_RUN | {"run", "rl", "networks", "optim"},
    "deploy": BELOW_RUN | {"run", "optim", "networks"},
    "study": BELOW_RUN | {"run"},
    "paper": BELOW_PAPER | {"study"},
    "cli": BELOW_PAPER | {"paper", "study", "ope", "deploy", "__init__"},
    "__init__": BELOW_RUN | {"run", "deploy"},
}


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names of everything imported anywhere in a file, inside functions too, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def part_of(path: tuple[str, ...]) -> str:
    """("rl", "dual.py") belongs to rl, ("cli.py",) to cli."""
    return path[0].removesuffix(".py")


def import_faults(path: tuple[str, ...], source: str) -> list[str]:
    """What a file, given by its path below src/diffcps, imports against the table."""
    part, faults = part_of(path), []
    if part not in MAY_IMPORT:
        return [f"{part} has no row in MAY_IMPORT"]
    for name, line in imported(ast.parse(source)):
        where = f"{'/'.join(path)}:{line}: {name}"
        if name.startswith("."):
            faults.append(f"{where}: write imports out in full")
        names = name.split(".")
        if names[0] != "diffcps":
            continue
        target = names[1] if len(names) > 1 and names[1] in MAY_IMPORT else "__init__"
        if target != part and target not in MAY_IMPORT[part]:
            faults.append(f"{where}: {part} may not import {target}")
        if part == target == "algorithms" and path[-1] != "__init__.py":
            faults.append(f"{where}: algorithms do not import one another")
    return faults


def inside(path: Path) -> tuple[str, ...]:
    return path.relative_to(SOURCE).parts


def test_files_were_found():
    assert {"types.py", "optim.py", "cli/main.py", "algorithms/diffcps.py"} <= {
        "/".join(inside(path)) for path in FILES
    }


def test_imports_point_downwards():
    assert [fault for path in FILES for fault in import_faults(inside(path), path.read_text())] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (("rl", "dual.py"), "from diffcps.networks.mlp import MLP"),
        (("rl", "dual.py"), "def f():\n    import diffcps.networks.mlp"),
        (("rl", "dual.py"), "from diffcps import networks"),
        (("rl", "dual.py"), "import diffcps"),
        (("rl", "dual.py"), "from ..networks import mlp"),
        (("diffusion", "loss.py"), "from diffcps.rl.dual import dual_loss"),
        (("types.py",), "from diffcps.optim import Trained"),
        (("algorithms", "diffcps.py"), "from diffcps.algorithms.diffusion_ql import draw"),
        (("algorithms", "diffcps.py"), "from diffcps.algorithms import diffusion_ql"),
        (("algorithms", "diffcps.py"), "from diffcps.data import load_dataset"),
        (("training", "loop.py"), "from diffcps.algorithms import ALGORITHMS"),
        (("training", "loop.py"), "if TYPE_CHECKING:\n    from diffcps.evaluation.rollout import roll_out"),
        (("run", "train.py"), "from diffcps.cli.main import main"),
        (("records", "record.py"), "from diffcps.run.train import train"),
        (("readers", "npz.py"), "from diffcps.data.checks import Rows"),
        (("wizardry", "spell.py"), "import math"),
    ],
)
def test_upward_imports_are_found(path, source):
    assert len(import_faults(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (("rl", "dual.py"), "from diffcps.types import Scalar\nimport jax\nfrom diffcps.rl.bellman import td_loss"),
        (("algorithms", "__init__.py"), "from diffcps.algorithms import diffcps"),
        (("cli", "main.py"), "from diffcps.run.train import train"),
    ],
)
def test_downward_imports_are_allowed(path, source):
    assert import_faults(path, source) == []


def test_importing_the_library_leaves_the_world_outside():
    names = ["gymnasium", "mujoco", "minari", "matplotlib", "h5py", "equinox"]
    program = f"import sys, diffcps, diffcps.algorithms; print([name for name in {names} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert answer.stdout.strip() == "['equinox']"  # which shows that the question is heard


# --- Pickle: a file that runs code when it is read ---

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def pickle_faults(source: str) -> list[int]:
    """Lines that import a pickle of some kind, or that allow one in a NumPy file."""
    tree = ast.parse(source)
    lines = [line for name, line in imported(tree) if name.split(".")[0] in PICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                lines.append(node.value.lineno)
    return lines


def test_nothing_is_unpickled():
    assert [f"{path}:{line}" for path in FILES for line in pickle_faults(path.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_pickles_are_found(source):
    assert len(pickle_faults(source)) == 1
    assert pickle_faults("import json\nnp.load(path, allow_pickle=False)") == []


# --- Docstrings ---


def undocumented(source: str) -> list[str]:
    """The module and its public functions and classes that have no docstring."""
    tree = ast.parse(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    public = [node for node in public if "overload" not in map(ast.unparse, node.decorator_list)]
    missing = [node.name for node in public if not ast.get_docstring(node)]
    return missing if ast.get_docstring(tree) else ["the module", *missing]


def test_public_names_are_documented():
    assert [f"{'/'.join(inside(path))}: {name}" for path in FILES for name in undocumented(path.read_text())] == []


def test_missing_docstrings_are_found():
    source = "def f(): pass\ndef g():\n    'Says it.'\nclass C: pass\ndef _private(): pass"
    assert undocumented(source) == ["the module", "f", "C"]
