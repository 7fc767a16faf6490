"""What users run: XLA with all its passes, members on devices of their own, networks and chains at their full size.

The other tests compile quickly, without XLA's newer fusions (tests/conftest.py), and would not see where these fail.
"""

import os
import subprocess
import sys

import pytest

from diffcps.algorithms import ALGORITHMS

ACTS = """
import sys
import jax
import numpy as np
from diffcps.algorithms import ALGORITHMS
from diffcps.training.members import Program, expand
from diffcps.types import NetObservation, Spec

jax.config.update("jax_num_cpu_devices", 2)
method, spec = ALGORITHMS[sys.argv[1]], Spec(11, 3)
program = Program(lambda swept: method.make(method.Config(), spec), expand([0, 1], {}), None)
observation = NetObservation(np.zeros((2, 10, 11), np.float32))
action = program.act(program.init(), observation, 0, 0)
assert action.shape == (2, 10, 3) and np.isfinite(action).all()
"""
QUICK = ("edp",)
"""A chain of a hundred steps, which once did not compile; the others on request."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS]
)
def test_two_members_act(name):
    plain = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", ACTS, name], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
