"""Off-policy evaluation: what trained policies are worth, from logged data alone."""
