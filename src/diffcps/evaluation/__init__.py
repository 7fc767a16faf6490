"""Evaluation: roll-outs of a policy in its environment, and the scores that tables report."""
