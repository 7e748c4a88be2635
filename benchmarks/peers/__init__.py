"""Engines that the benchmarks compare, one small module each, with the same interface.

A contender gets two checkpoints and returns the log-probs of both for the same token ids. Its packages are
the optional extra `peers`; one that is not installed is skipped, with the reason in the result.
"""
