"""Sequences into batches: prefix tries, token budgets, scheduling windows."""
