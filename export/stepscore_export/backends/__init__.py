"""One backend for each way to store a model: onnx, optimum, bitsandbytes."""
