"""The Python face: compress a model, compare two, evaluate one; the command line only parses and prints."""

from __future__ import annotations

from onnxprune.api.comparing import Evaluation, compare, evaluate
from onnxprune.api.compressing import Result, compress
from onnxprune.api.options import Gates, Options

__all__ = ["Evaluation", "Gates", "Options", "Result", "compare", "compress", "evaluate"]
