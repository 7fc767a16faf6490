"""Networks as Equinox modules. A module is its own parameters: every leaf is a trainable array."""
