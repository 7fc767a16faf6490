"""Diffusion mathematics. It knows no reinforcement learning: `x0` is whatever is modelled."""
