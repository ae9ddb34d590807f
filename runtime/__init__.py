"""Runs artifacts: batched, lossless tree speculation on ONNX Runtime."""
