"""One run, from what is asked for to its scores, curves and policy."""
