"""The methods of the toy problems: how pictures show each, and what differs from its defaults there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffcps.plots import BLUE, GREEN, ORANGE, PURPLE, RED, TEAL


@dataclass(frozen=True)
class ToyMethod:
    """A row of METHODS."""

    label: str
    """In titles and tables."""
    colour: str
    figures: tuple[str, ...]
    """Items of `reproduce` that show it."""
    circle: Mapping[str, object] = field(default_factory=dict)
    """Fields of its `Config` that differ from the defaults on the noisy circle."""
    stitching: Mapping[str, object] = field(default_factory=dict)
    """The same on the stitching problem."""
    fast: Mapping[str, object] = field(default_factory=dict)
    """The same in a smoke run, on either."""


METHODS: Mapping[str, ToyMethod] = {
    "sfbc": ToyMethod(
        "SfBC",
        GREEN,
        ("figure1", "figure5", "figure6"),
        # The mean of several actions of a ring lies inside it. Choosing one of the candidates is SfBC's policy, and
        # stays. Its network of 512 units would train longer than all other methods together.
        circle={"averaged_actions": 1, "behaviour_width": 128},
    ),
    "diffusion_ql": ToyMethod("Diffusion-QL", ORANGE, ("figure1", "figure5", "figure6")),
    "diffcps": ToyMethod(
        "DiffCPS",
        BLUE,
        ("figure1", "figure5", "figure6", "figure9"),
        # The least L_c, of the exact denoiser of the circle's data, is 0.06, 0.16, 0.18, 0.19 at T = 2, 5, 10, 15: 0.2
        # can be met. (The paper's Table 4 has no row for the toy problems.)
        circle={"kappa": 0.2},
        stitching={"kappa": 0.2},
    ),
    "diffusion_bc": ToyMethod("Diffusion BC", PURPLE, ("figure5", "figure6", "figure8", "figure9")),
    # Each of the 40 iterations has two stages, and a stage needs an update: more than there are in a smoke run.
    "awr": ToyMethod("AWR", TEAL, ("figure1", "figure5"), fast={"iterations": 1}),
    "td3_bc": ToyMethod("TD3+BC", TEAL, ("figure7",)),
    # One candidate: an action of the policy, not the best of 100.
    "bcq": ToyMethod("BCQ", GREEN, ("figure7",), circle={"num_candidates": 1}),
    # One candidate. The warm-up of 40,000 updates would outlast the training: a tenth of it instead.
    "bear": ToyMethod("BEAR", RED, ("figure7",), circle={"num_candidates": 1, "warm_up_updates": 2_000}),
    # One action per state would be the mean of both arms; a Gaussian is what the paper calls BC's policy.
    "bc": ToyMethod("BC (Gaussian)", RED, ("figure9",), stitching={"policy": "gaussian"}),
}
"""In the order in which figures show them."""
