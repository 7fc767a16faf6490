"""Compiled programs are kept between commands, in the user's cache folder."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
from pathlib import Path

from diffcps.storage import cache_folder

MAX_BYTES = 2**30
"""Above this the oldest programs are deleted."""
LEAST_SECONDS = 0.3
"""What compiles sooner is not kept."""


def add_flag(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--no-compile-cache, for a command that compiles."""
    parser.add_argument(
        "--no-compile-cache",
        dest="compile_cache",
        action="store_false",
        help="compile everything anew, and keep nothing of it for other commands",
    )


def keep_compiled(wanted: bool) -> None:
    """Sets JAX's cache of compiled programs, for this process and those that it starts.

    What JAX has been told (JAX_COMPILATION_CACHE_DIR, `jax_compilation_cache_dir`) stays as it is.
    """
    import jax

    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    folder = cache_folder() / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _forget_the_oldest(folder)
    except OSError:  # a home that cannot be written to: everything works, and is compiled each time
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def _processor() -> str:
    """A name for what programs of a CPU are compiled for: machines that share a home may differ in it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        features = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def _forget_the_oldest(folder: Path) -> None:
    """Deletes programs until half of `MAX_BYTES` is left, where there is more than that."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.iterdir() if path.is_file())
    total = sum(size for _, size, _ in files)
    if total <= MAX_BYTES:
        return
    for _, size, path in files:
        if total <= MAX_BYTES // 2:
            return
        path.unlink(missing_ok=True)
        total -= size
