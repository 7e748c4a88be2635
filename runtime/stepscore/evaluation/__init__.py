"""Evaluation of rewards against labels: first wrong step, ProcessBench."""
