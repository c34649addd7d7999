"""Makes trained ONNX models smaller and faster, and proves what that did to their decisions.

The names below load on first use, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.api import compare as compare
    from onnxprune.api import compress as compress
    from onnxprune.api import decode as decode
    from onnxprune.api import encode as encode

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "compress", "decode", "encode"]

_WHERE = dict.fromkeys(("compare", "compress", "decode", "encode"), "onnxprune.api")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
