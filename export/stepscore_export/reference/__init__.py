"""Run checkpoints in fp32, layer by layer, as ground truth."""
