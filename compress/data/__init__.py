"""Examples: every DATA form, preprocessing, and the split into calibration and evaluation."""

from __future__ import annotations

from onnxprune.data.examples import Batch, Examples, Fingerprint, shared_examples
from onnxprune.data.inputs import InputSpec
from onnxprune.data.opening import DataLike, open_data
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.spec import named_splits
from onnxprune.data.split import Split, split_data

__all__ = [
    "Batch",
    "DataLike",
    "Examples",
    "Fingerprint",
    "InputSpec",
    "Preprocess",
    "Split",
    "named_splits",
    "open_data",
    "shared_examples",
    "split_data",
]
