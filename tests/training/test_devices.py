"""Members are spread over as many devices as share them equally, and are the same on each; how the loop is compiled."""

import os
import re
import subprocess
import sys

import numpy as np

PROGRAM = """
import sys
import jax
import jax.numpy as jnp
import numpy as np

devices, path = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_num_cpu_devices", devices)
from diffcps.algorithms import td3_bc
from diffcps.training.members import Program, expand
from diffcps.training.timing import made_up_data
from diffcps.types import Spec

spec = Spec(3, 2)
config = td3_bc.Config(width=16, batch_size=8)
program = Program(lambda swept: td3_bc.make(config, spec), expand(range(8), {}), made_up_data(spec))
state, alive, metrics = program.advance(program.init(), jnp.ones(8, bool), 0, 9)
assert bool(alive.all())
used = {shard.device.id for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards}
assert used == set(range(devices)), used
assert all(leaf.addressable_shards[0].data.shape[0] == 8 // devices for leaf in jax.tree.leaves(state))
np.savez(path, *map(np.asarray, jax.tree.leaves((state, metrics))))
"""


def test_eight_devices_train_a_member_each(tmp_path):
    arrays = {}
    for devices in (8, 1):
        path = tmp_path / f"{devices}.npz"
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(devices), path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        arrays[devices] = np.load(path)
    assert len(arrays[8].files) > 20
    for name in arrays[8].files:
        np.testing.assert_allclose(arrays[8][name], arrays[1][name], rtol=1e-5, atol=1e-6)


def test_the_loop_is_compiled_for_vectors_of_512_bits(tmp_path):
    dump = tmp_path / "dump"
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_module_re=.*_advance"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", PROGRAM, "1", tmp_path / "1.npz"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    compiled = "".join(path.read_text() for path in dump.glob("*jit__advance*.ll"))
    assert set(re.findall(r'"prefer-vector-width"="(\d+)"', compiled)) == {"512"}
