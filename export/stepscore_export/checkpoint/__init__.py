"""Hugging Face checkpoints, opened safely and read in row blocks."""
