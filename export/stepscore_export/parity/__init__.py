"""A pair against PyTorch, on text of the user."""
