"""Gymnasium environments: made with readable errors, measured, and matched with the data."""
