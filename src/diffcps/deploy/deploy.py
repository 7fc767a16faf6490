"""A policy of diffcps, by NumPy and onnxruntime alone.

python deploy.py 0.1 -0.3 ...    one observation, in the environment's units
python deploy.py rows.npy        one observation in each row
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]

FILE = Path(__file__).with_name("policy.onnx")


class Policy:
    """policy(observation) -> action in the environment's units: (obs,) -> (act,), or a batch (n, obs) -> (n, act)."""

    def __init__(self, path=FILE, seed=0):
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = {given.name: given.shape[1] for given in self.session.get_inputs()}
        rng = np.random.default_rng(seed)
        self.laws = {"noise": rng.standard_normal, "gumbel": lambda size: rng.gumbel(size=size)}

    def __call__(self, observation):
        rows = np.atleast_2d(np.asarray(observation, np.float64))
        if rows.ndim != 2 or rows.shape[1] != self.inputs["observation"] or not np.isfinite(rows).all():
            raise ValueError(
                f"an observation is {self.inputs['observation']} finite numbers, not {np.shape(observation)}"
            )
        drawn = {name: law((len(rows), self.inputs[name])) for name, law in self.laws.items() if name in self.inputs}
        given = {"observation": rows} | {name: numbers.astype(np.float32) for name, numbers in drawn.items()}
        action = np.asarray(self.session.run(["action"], given)[0])
        return action.reshape(*np.shape(observation)[:-1], -1)


if __name__ == "__main__":
    words = sys.argv[1:]
    from_file = len(words) == 1 and words[0].endswith(".npy")
    try:
        observation = np.load(words[0], allow_pickle=False) if from_file else np.array(words, np.float64)
        actions = np.atleast_2d(Policy()(observation))
    except (OSError, ValueError) as error:
        sys.exit(f"deploy.py: {error}")
    for row in actions:
        print(*row)
