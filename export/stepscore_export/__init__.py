"""Two Qwen2 checkpoints in, one pair of ONNX models out, in bounded memory."""
