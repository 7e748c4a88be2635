"""ONNX graphs of the decoder and the log-prob head."""
