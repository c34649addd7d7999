"""ONNX Runtime: providers, sessions, streamed statistics, latency."""
