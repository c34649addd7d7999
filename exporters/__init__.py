"""From PyTorch to ONNX (needs the train extra)."""
