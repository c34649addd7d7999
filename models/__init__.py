"""The training side: network zoo, data sets and training (needs the train extra)."""

from __future__ import annotations

from importlib.util import find_spec

from onnxprune.errors import OptionError

__all__ = ["require_torch"]


def require_torch(what: str) -> None:
    """Check that PyTorch and the ONNX exporter's own packages are installed.

    Args:
        what: The start of the sentence, such as ``"training"``.

    Raises:
        OptionError: If ``torch`` or ``onnxscript`` is missing.
    """
    wanted = {"torch": "PyTorch", "onnxscript": "onnxscript"}
    for package, title in wanted.items():
        if find_spec(package) is None:
            raise OptionError(f'{what} needs {title}: pip install "onnxprune[train]"')
