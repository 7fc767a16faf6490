"""The tutorials run from their first cell to their last, and what they show is what running them gives."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.ipynb"))
names = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@names
def test_every_cell_was_run_in_order_without_an_error(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not any(output["output_type"] == "error" for output in outputs)
    for cell in code:  # a stream in one piece: pages show each piece in a box of its own
        kinds = [(output["output_type"], output.get("name")) for output in cell["outputs"]]
        assert not any(one == other and one[0] == "stream" for one, other in pairwise(kinds))
    shown = json.dumps(outputs)
    assert "diffcps: error" not in shown and "Traceback" not in shown
    assert str(Path.home()) not in shown and "/tmp/" not in shown  # no path of the machine that ran it


@pytest.mark.slow
@names
def test_it_runs(path, tmp_path, monkeypatch):
    """In an empty folder, with this Python and its commands (extra `tutorials`)."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    shown = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "diffcps: error" not in shown and "Traceback" not in shown
