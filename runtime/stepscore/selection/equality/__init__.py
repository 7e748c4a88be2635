"""Equality of two answers: rules of this package first, math-verify for what they do not read."""
