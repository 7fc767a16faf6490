"""Checkpoints come back bit for bit, are replaced as a whole, and say what is wrong with them."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.training import checkpoint
from diffcps.types import UserError

TREE = {"weight": np.array([[1.5, -2.0], [3.25, np.inf]], np.float32), "count": (np.int32(7), np.bool_(True))}
SHAPES = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))


def test_round_trip_keeps_every_bit_and_the_information(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TREE, {"update": 3, "stopped": {"1": "why"}})
    tree, information = checkpoint.load(path, SHAPES)
    assert information == {"update": 3, "stopped": {"1": "why"}}
    for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(TREE), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, TREE, {"update": 3, "a": 1, "b": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TREE, {"update": 1})
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, TREE, {"update": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_bad_files_are_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(path, SHAPES)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a checkpoint of diffcps, or damaged"):
        checkpoint.load(path, SHAPES)
    checkpoint.save(path, TREE, {})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, SHAPES)


def test_another_configuration_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TREE, {})
    with pytest.raises(UserError, match=r"weight is float32 \(2, 2\) where float32 \(2, 3\) is expected"):
        checkpoint.load(path, {**SHAPES, "weight": jax.ShapeDtypeStruct((2, 3), np.float32)})
    with pytest.raises(UserError, match=r"weight is float32 \(2, 2\) where float16 \(2, 2\) is expected"):
        checkpoint.load(path, {**SHAPES, "weight": jax.ShapeDtypeStruct((2, 2), np.float16)})
    with pytest.raises(UserError, match="holds no array bias"):
        checkpoint.load(path, {**SHAPES, "bias": jax.ShapeDtypeStruct((2,), np.float32)})
