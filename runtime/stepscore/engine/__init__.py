"""What runs a pair: an engine takes batches and gives log-probs."""
