"""Compiled programs are kept between commands: where, how many, and what a second start saves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from diffcps.cli import compiled
from diffcps.cli.compiled import keep_compiled
from diffcps.cli.main import main
from diffcps.storage import cache_folder


def told(name: str) -> object:
    """What JAX has been told, here or by an environment variable."""
    return getattr(jax.config, name)


@pytest.fixture
def nobody_said(monkeypatch, tmp_path) -> Iterator[Path]:
    """JAX has been told nothing; the user's cache."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: told(name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in names:
        monkeypatch.setenv(name.upper(), "")  # so that what is set here goes away again
        monkeypatch.delenv(name.upper())
    yield tmp_path / "diffcps" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(nobody_said):
    keep_compiled(True)
    (folder,) = nobody_said.iterdir()  # of this processor
    assert told("jax_compilation_cache_dir") == str(folder)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)  # for the processes of a study
    assert cache_folder() in folder.parents


def test_what_jax_has_been_told_stands(nobody_said, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    keep_compiled(True)
    assert told("jax_compilation_cache_dir") == str(tmp_path / "mine") and not nobody_said.exists()


def test_without_it_nothing_is_kept_here_or_in_other_processes(nobody_said):
    keep_compiled(False)
    assert not told("jax_enable_compilation_cache") and not nobody_said.exists()
    asked = "import jax; print(jax.config.jax_enable_compilation_cache)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "False\n"


def test_a_home_that_cannot_be_written_to_is_no_hindrance(nobody_said, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled(True)
    assert told("jax_compilation_cache_dir") is None


def test_the_oldest_programs_go(nobody_said, monkeypatch):
    keep_compiled(True)
    folder = Path(str(told("jax_compilation_cache_dir")))
    for age in range(6):
        (folder / f"{age}").write_bytes(bytes(10))
        os.utime(folder / f"{age}", (1e9 - age, 1e9 - age))
    monkeypatch.setattr(compiled, "MAX_BYTES", 60)
    for limit, left in ((60, 6), (59, 2)):
        monkeypatch.setattr(compiled, "MAX_BYTES", limit)
        jax.config.update("jax_compilation_cache_dir", None)
        keep_compiled(True)
        assert sorted(path.name for path in folder.iterdir()) == [str(age) for age in range(left)]


def test_a_second_command_compiles_nothing_and_finds_the_same_numbers(tmp_path):
    """In processes of their own, as commands are."""
    words = ["--width", "16", "--depth", "1", "--updates", "20", "--eval-every", "20", "--episodes", "1"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_LOGGING_LEVEL": "DEBUG"}
    environment.pop("JAX_COMPILATION_CACHE_DIR")

    def trained(name: str, *more: str) -> tuple[int, bytes]:
        """How many programs were taken from disk, and the last state."""
        out = tmp_path / name
        command = [sys.executable, "-m", "diffcps.cli.main", "train", "td3_bc", *words, "--out", str(out), *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stderr.count("Persistent compilation cache hit"), (
            out / "checkpoints" / "last.safetensors"
        ).read_bytes()

    first, second, third = trained("first"), trained("second"), trained("third", "--no-compile-cache")
    assert first[0] == third[0] == 0 < second[0]
    assert first[1] == second[1] == third[1]


@pytest.mark.parametrize("words", [["train", "bc"], ["evaluate"], ["kappa"], ["study", "run"], ["reproduce"]])
def test_every_command_that_compiles_has_the_flag(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert "--no-compile-cache" in capsys.readouterr().out
