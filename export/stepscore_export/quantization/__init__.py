"""Quantize arrays to codes and scales: pure functions, no files, no graphs."""
