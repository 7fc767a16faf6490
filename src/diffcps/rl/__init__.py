"""RL mathematics: one function per equation, taking numbers and not networks."""
