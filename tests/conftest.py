"""What every test runs under: shapes and types checked at each call, and every random key used once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

# XLA compiles in half the time, with fewer passes, without its newer fusions (MLIR's; a flag of jaxlib 0.10, which
# constraints.txt names) and each program in one piece, where programs run for seconds. Set before it starts.
QUICKLY = (
    "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{QUICKLY} {os.environ.get('XLA_FLAGS', '')}".strip()

# Annotations become run-time checks, in tests only. The hook must be in place before diffcps is first imported.
install_import_hook("diffcps", "beartype.beartype")

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_num_cpu_devices", 2)  # so that members of a run are spread over devices on any machine
# `jax_numpy_rank_promotion` stays at its default. Functions over "*b" promote ranks by design: a bias (out,) is added
# to (*b, out), one time step meets a batch. `strict_promotion` checks the places where all ranks are equal.

# First calls compile, so that deadlines would fail at random. The examples are the same in every run.
hypothesis.settings.register_profile("diffcps", deadline=None, derandomize=True, max_examples=10)
hypothesis.settings.load_profile("diffcps")

Arrays = dict[str, np.ndarray]


@cache
def load_golden(name: str) -> Arrays:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        arrays = dict(file)
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Arrays]:
    """Loads tests/golden/<name>.npz, numbers recorded from the authors' program."""
    return load_golden


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory) -> Iterator[None]:
    """A program that was compiled before in this process is taken from disk, even where other functions made it.

    Each worker has a folder of its own, and another one for the commands that its tests start, because JAX does not
    write the files whole or not at all.
    """
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled_by_commands")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
        yield
    jax.config.update("jax_compilation_cache_dir", None)


MANY_MAPS = 20_000
"""Memory maps at which compiled programs are dropped; Linux allows a process 65,530 by default."""


def memory_maps() -> int:
    """How many memory maps this process holds (Linux; 0 elsewhere)."""
    try:
        return len(Path("/proc/self/maps").read_text().splitlines())
    except OSError:
        return 0


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps() -> Iterator[None]:
    """Every compiled program holds a few maps; a worker that runs out of them crashes inside XLA."""
    yield
    if memory_maps() > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """XLA without most of its optimisations, for modules of many small programs that each run once: half the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """No implicit mixing of dtypes. Not global, because optax's Adam does not pass it."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def strict_promotion(strict_dtypes: None) -> Iterator[None]:
    """No implicit mixing of dtypes or of ranks."""
    with jax.numpy_rank_promotion("raise"):
        yield
