"""Modules of many small programs, each of which runs once."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(quick_compilation: None) -> None:
    """XLA without most of its optimisations, in every module of this folder."""
