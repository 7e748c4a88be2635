"""The checkpoints in fp32, as ground truth: one layer at a time."""
