"""A run on disk: what it was asked for, what it measured, and the folder that holds both."""
