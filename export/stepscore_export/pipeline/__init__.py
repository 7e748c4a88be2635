"""The export, step by step."""
