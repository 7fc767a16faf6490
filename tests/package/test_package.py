"""The package as others get it: what is in it, and that it works in an empty environment far from the source."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


class Environment(NamedTuple):
    """A virtual environment, of which nothing but its own packages is seen."""

    folder: Path

    def run(self, program: str, *arguments: str | Path) -> str:
        """Runs one of its programs in its own folder; standard output."""
        ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "XLA_FLAGS")
        variables = {name: value for name, value in os.environ.items() if name not in ours}
        variables |= {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            capture_output=True,
            text=True,
            timeout=900,
            cwd=self.folder,
            env=variables | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "JAX_PLATFORMS": "cpu"},
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return done.stdout


def environment(folder: Path, *packages: str | Path) -> Environment:
    """A new one, of the Python that runs the tests."""
    venv.create(folder, with_pip=True)
    made = Environment(folder)
    made.run("python", "-m", "pip", "install", "--quiet", *packages)
    return made


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Environment:
    return environment(tmp_path_factory.mktemp("tools"), "build", "twine")


@pytest.fixture(scope="module")
def dist(tmp_path_factory, tools) -> Path:
    """The folder of the source distribution and of the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("dist")
    tools.run("python", "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def tops(names: list[str]) -> set[str]:
    return {PurePosixPath(name).parts[0] for name in names}


def test_the_wheel_is_small_and_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert tops(names) == {"diffcps", info}
    assert {"diffcps/py.typed", "diffcps/data/builtin/hopper-replay.hdf5", f"{info}/licenses/LICENSE"} <= set(names)
    assert [name for name in names if "test_" in name or "__pycache__" in name or name.endswith((".md", ".png"))] == []
    assert wheel.stat().st_size < 10 * 2**20


def test_the_wheel_has_every_file_of_the_library(wheel):
    kept = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {f"src/{name}" for name in zipfile.ZipFile(wheel).namelist()} >= set(kept.split())


def test_the_source_distribution_holds_the_source_alone(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = [name.split("/", 1)[1] for name in file.getnames()]
    words = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert tops(names) == {"src"} | words
    assert path.stat().st_size < 10 * 2**20


def test_a_package_index_can_show_it(dist, tools):
    assert tools.run("twine", "check", "--strict", *dist.iterdir()).count("PASSED") == 2


def test_it_trains_in_an_empty_environment(wheel, tmp_path):
    empty = environment(tmp_path / "empty", wheel)
    where = empty.run("python", "-c", "import diffcps; print(diffcps.__file__)").strip()
    assert Path(where).is_relative_to(empty.folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}")
    assert empty.run("diffcps", "--version").split()[0] == "diffcps"
    assert "diffcps train diffcps" in empty.run("diffcps", "list")
    settings = ("--env", "none", "--updates", "100", "--log-every", "50", "--eval-every", "100", "--width", "32")
    empty.run("diffcps", "train", "diffcps", "--dataset", "builtin", *settings, "--out", "run")
    rows = (empty.folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2 and '"update": 100' in rows[-1]
    empty.run("python", "-c", "import diffcps, numpy; print(diffcps.load_policy('run', 'last')(numpy.zeros(11)).shape)")
