"""Comparison of a pair with PyTorch, on text of the user."""
