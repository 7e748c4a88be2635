"""Rewards against labels: first errors, ProcessBench."""
