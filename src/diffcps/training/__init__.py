"""The loop, seeds and sweeps, checkpoints and run folders. It knows the contract and no algorithm."""
