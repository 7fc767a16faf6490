"""Checkpoints: one safetensors file each, with JSON inside, replaced as a whole or not at all."""

from __future__ import annotations

import json
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from diffcps.storage import Json, JsonRow, write_atomically
from diffcps.types import Tree, UserError


def save(path: Path, tree: Tree, information: Mapping[str, Json]) -> None:
    """Writes the arrays of `tree`, named by their path in it, and `information` as JSON. Equal input, equal bytes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(name, simple=True, separator="."): np.asarray(leaf) for name, leaf in leaves}
    # A single key: safetensors keeps metadata in a hash map, whose order differs from process to process.
    metadata = {"diffcps": json.dumps(information, sort_keys=True)}
    write_atomically(path, safetensors.numpy.save(arrays, metadata=metadata))


def information(path: Path) -> JsonRow:
    """The information saved with a checkpoint."""
    with _readable(path), open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        return json.loads(header["__metadata__"]["diffcps"])


@contextmanager
def _readable(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, struct.error) as error:
        raise UserError(f"{path}: not a checkpoint of diffcps, or damaged ({error})") from None


def load(path: Path, like: Tree) -> tuple[Tree, JsonRow]:
    """The tree saved at `path`, in the structure of `like` (arrays or their shapes), and its information."""
    with _readable(path):
        arrays = safetensors.numpy.load_file(path)

    def leaf(name, like):
        key = jax.tree_util.keystr(name, simple=True, separator=".")
        if key not in arrays:
            raise UserError(f"{path}: holds no array {key}: it was written by another configuration or version")
        found = arrays[key]
        if found.shape != like.shape or found.dtype != like.dtype:
            raise UserError(f"{path}: {key} is {found.dtype} {found.shape} where {like.dtype} {like.shape} is expected")
        return found

    return jax.tree_util.tree_map_with_path(leaf, like), information(path)
