"""What devices say of their memory, in bytes. A CPU says nothing: its memory is the machine's."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping

import jax


def free_of_device() -> int | None:
    """Of the first device; None where it does not say."""
    stats = _stats()[0]
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None


def peak_of_devices() -> int | None:
    """The most that one of them has held at once; None where none of them says."""
    return max((stats["peak_bytes_in_use"] for stats in _stats() if stats), default=None)


def peak_of_host() -> int:
    """The most that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _stats() -> list[Mapping[str, int]]:
    return [device.memory_stats() or {} for device in jax.local_devices()]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
