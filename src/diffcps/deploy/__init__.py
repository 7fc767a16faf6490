"""What leaves this library: a policy in files that need neither it nor JAX."""
