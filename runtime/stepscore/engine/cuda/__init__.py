"""Engine of pairs exported for CUDA: weights are inputs of the graphs, and are copied to the device."""
