"""A page in headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

with_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
QUIET = [f"--disable-{name}" for name in ("gpu", "quic", "background-networking", "component-update", "sync")]


class Seen(NamedTuple):
    """What a browser did with a page."""

    console: list[str]
    """Errors, and requests that a page forbids itself."""
    page: str
    """As it stood in the end."""


def seen(url: str, profile: Path, *flags: str) -> Seen:
    """Opens a page."""
    command = [
        *("chromium", "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}", *QUIET, *flags),
        *("--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", url),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return Seen([line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout)
