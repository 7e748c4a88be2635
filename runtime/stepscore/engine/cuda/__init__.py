"""Engine of pairs exported for CUDA: graphs whose weights are inputs, weights copied to the device."""
