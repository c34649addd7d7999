"""From PyTorch to ONNX and back (needs the train extra)."""
