"""Where algorithms, data and environments meet: runs, presets, the paper's experiments."""
