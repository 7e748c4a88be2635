"""Engine on PyTorch, for bitsandbytes pairs. Imports PyTorch only when a pair is opened."""
