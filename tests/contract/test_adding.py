"""What a new method has to touch: its file, its presets, its page, a row in the contract test and a learning test."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffcps.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "diffcps"
# What is about certain methods: studies of the paper, and the floor of DiffCPS's bound. A new method needs none of it.
CHOOSE_AMONG_METHODS = {"paper/methods.py", "paper/runtime.py", "run/kappa.py"}
PROGRAM = """
import json, sys
import diffcps
from diffcps.algorithms import ALGORITHMS, tenth
from diffcps.cli.main import main
assert diffcps.__file__.startswith(sys.argv[1])
for arguments in (["list"], ["cite", "tenth"]):
    assert main(arguments) == 0
settings = diffcps.Settings(env="none", updates=4, eval_every=4, log_every=2)
diffcps.train(tenth.Config(width=8, depth=1, batch_size=8), "builtin", settings, out=sys.argv[1] + "/run")
policy = diffcps.load_policy(sys.argv[1] + "/run", "last")
print(json.dumps([*ALGORITHMS]))
"""


def named_in(source: str) -> set[str]:
    """Methods that a program names: by a string or by an import."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.ImportFrom) and node.module == "diffcps.algorithms":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffcps.algorithms."):
            found.add((node.module or "").split(".")[-1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[-1] for alias in node.names if ".algorithms." in alias.name}
    return found & set(ALGORITHMS)


def test_no_program_outside_its_own_file_names_a_method():
    named = {
        path.relative_to(SOURCE).as_posix(): named_in(path.read_text()) - {"diffcps"}  # which is the package's, too
        for path in sorted(SOURCE.rglob("*.py"))
        if path.parent.name != "algorithms"
    }
    assert {path for path, methods in named.items() if methods} == CHOOSE_AMONG_METHODS
    # Negative control: names are found where they stand.
    assert named_in((Path(__file__).parent / "test_contract.py").read_text()) == set(ALGORITHMS)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_method_has_its_own_files_and_a_learning_test(name):
    assert (SOURCE / "algorithms" / f"{name}.py").is_file() and (ROOT / "docs" / "algorithms" / f"{name}.md").is_file()
    assert any(name in named_in(path.read_text()) for path in sorted((ROOT / "tests" / "learning").glob("*.py")))


def test_a_file_is_all_that_the_library_needs_to_know_a_tenth_method(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "diffcps", ignore=shutil.ignore_patterns("__pycache__"))
    source = (SOURCE / "algorithms" / "bc.py").read_text()
    (tmp_path / "diffcps" / "algorithms" / "tenth.py").write_text(source.replace("Behaviour cloning:", "A tenth:"))
    preset = 'hopper-medium = { width = 8, reward = "none" }\n'
    (tmp_path / "diffcps" / "presets" / "tenth.toml").write_text(preset)
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)},
    )
    assert answer.returncode == 0, answer.stderr
    assert "A tenth: supervised regression" in answer.stdout
    assert "diffcps train tenth   presets: hopper-medium" in answer.stdout
    assert "@inproceedings{pomerleau1988alvinn" in answer.stdout
    assert json.loads(answer.stdout.splitlines()[-1]) == [*ALGORITHMS, "tenth"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["algorithm"] == "tenth"
