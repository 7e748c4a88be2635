"""Batching: prefix tries, packed batches, token budgets, scheduling windows, prefetch."""
