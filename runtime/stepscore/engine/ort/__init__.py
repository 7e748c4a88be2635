"""Engine on ONNX Runtime."""
