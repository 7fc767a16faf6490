"""Make the dataset that comes with the package out of a larger D4RL-layout HDF5 file.

    python tools/make_builtin_dataset.py hopper-medium-replay.hdf5 src/diffcps/data/builtin/hopper-replay.hdf5

Rule: of the episodes that are marked as ended and start at row `--first-transition` or later, every `--stride`-th is
taken, in order, as many as fit into `--max-bytes`. Next observations are left out (the readers find them in the next
row). The same input gives the same bytes with the same h5py.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from pathlib import Path

import h5py
import numpy as np

SOURCE = (
    "Replay buffer of one online SAC run (sbx-rl 0.28, default settings, 8 environments, one gradient step per "
    "transition) in Gymnasium Hopper-v5 from its start, made for this project; D4RL's medium-replay recipe, but not "
    "a D4RL file: compare scores only within this file."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="D4RL-layout HDF5 file")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--first-transition", type=int, default=0, help="first row at which an episode may start")
    parser.add_argument("--stride", type=int, default=2, help="take every so manieth episode")
    parser.add_argument("--max-bytes", type=int, default=8 * 2**20, help="size that the output may not exceed")
    parser.add_argument("--source-text", default=SOURCE, help="where the data comes from, stored in the file")
    args = parser.parse_args()

    with h5py.File(args.input, "r") as file:
        fields = {
            "observations": np.asarray(file["observations"], dtype=np.float32),
            "actions": np.asarray(file["actions"], dtype=np.float32),
            "rewards": np.asarray(file["rewards"], dtype=np.float32),
            "terminals": np.asarray(file["terminals"], dtype=bool),
            "timeouts": np.asarray(file["timeouts"], dtype=bool),
        }
        kept_attributes = {name: file.attrs[name] for name in ("env_id", "ref_min_score", "ref_max_score")}

    ends = np.flatnonzero(fields["terminals"] | fields["timeouts"]) + 1
    starts = np.append(0, ends[:-1])
    chosen = np.flatnonzero(starts >= args.first_transition)[:: args.stride]
    recipe = {
        "source": args.source_text,
        "recipe": (
            f"tools/make_builtin_dataset.py {args.input.name} --first-transition {args.first_transition} "
            f"--stride {args.stride} --max-bytes {args.max_bytes}"
        ),
        "input_sha256": hashlib.sha256(args.input.read_bytes()).hexdigest(),
    }

    # The largest number of episodes whose file is small enough, by bisection; most often that is all of them.
    fitting, too_many, count = 0, len(chosen) + 1, len(chosen)
    content = b""
    while too_many - fitting > 1:
        candidate = encode(fields, starts[chosen[:count]], ends[chosen[:count]], {**kept_attributes, **recipe})
        if len(candidate) <= args.max_bytes:
            fitting, content = count, candidate
        else:
            too_many = count
        count = (fitting + too_many) // 2
    if not content:
        parser.error("not even one episode fits; raise --max-bytes or lower --first-transition")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(content)
    with h5py.File(args.output, "r") as file:
        for name in ("transitions", "episodes", "mean_return", "std_return"):
            print(f"{name:12} {file.attrs[name]:.6g}")
    print(f"{'bytes':12} {len(content)} of {args.max_bytes}, {fitting} of {len(chosen)} chosen episodes")


def encode(fields: dict[str, np.ndarray], starts: np.ndarray, ends: np.ndarray, attributes: dict[str, object]) -> bytes:
    """The HDF5 file of the episodes [start, end), as bytes."""
    rows = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
    reward = fields["rewards"].astype(np.float64)
    returns = np.array([reward[start:end].sum() for start, end in zip(starts, ends, strict=True)])
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, value in fields.items():
            columns = value[rows]
            chunk = (min(len(rows), 2**14), *([1] * (columns.ndim - 1)))  # a column by itself compresses best
            file.create_dataset(
                name,
                data=columns,
                chunks=chunk,
                compression="gzip",
                compression_opts=9,
                shuffle=True,
                track_times=False,
            )
        counts = {
            "transitions": len(rows),
            "episodes": len(starts),
            "mean_return": float(returns.mean()),
            "std_return": float(returns.std()),
        }
        for name, value in sorted({**attributes, **counts}.items()):
            file.attrs[name] = value
    return buffer.getvalue()


if __name__ == "__main__":
    main()
