"""What people score a pair with today: one small module each, all doing the same job.

A contender is told where two checkpoints are and gives the log-probs of both for the same token ids. Its
packages are the optional extra `peers`; one that is not installed is skipped, with its reason in the result.
"""
