"""Every error the tool raises on purpose, in one tree.

OnnxPruneError            anything below; ``status`` is the exit status the command line gives it
├── OptionError      (2)  a flag, recipe, option or output path is not usable as written
├── ModelError       (3)  the model file or graph is missing, broken or not what it should be
├── DataError        (3)  the examples or labels are missing, broken or do not fit the model
├── CodecError       (3)  a coded stream is not readable
└── BackendError     (4)  ONNX Runtime or the file system failed while working

A message holds three things: which object, what was found, what is accepted (or how to mend it).
"""

from __future__ import annotations


class OnnxPruneError(Exception):
    """Base of all errors raised on purpose; ``status`` is the command line's exit status."""

    status: int = 4


class OptionError(OnnxPruneError):
    """A flag, a recipe, an option's value or an output path cannot be used as written."""

    status = 2


class ModelError(OnnxPruneError):
    """A model file or graph is missing, truncated, not ONNX, or not valid."""

    status = 3


class DataError(OnnxPruneError):
    """Examples or labels are missing, broken, or do not fit the model."""

    status = 3


class CodecError(OnnxPruneError):
    """A coded stream is truncated, corrupt or of another format."""

    status = 3


class BackendError(OnnxPruneError):
    """ONNX Runtime or the file system failed while doing the work."""

    status = 4
