"""What a model file says about itself, so that ``apply`` needs no further option."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from onnxprune.data import Preprocess
from onnxprune.errors import OptionError

__all__ = ["CLASSES", "DATA", "PREPROCESS", "describe"]

PREPROCESS = "onnxprune.preprocess"
DATA = "onnxprune.data"
CLASSES = "onnxprune.classes"


def describe(
    preprocess: Preprocess | None = None, classes: Sequence[str] | None = None, data: str | None = None
) -> dict[str, str]:
    """Build ``metadata_props`` entries; what is None or empty is left out.

    Args:
        preprocess: How pixels become inputs.
        classes: Class names in the order of the outputs.
        data: The DATA spec the model was trained on.

    Raises:
        OptionError: If a class name appears twice.
    """
    entries: dict[str, str] = {}
    if preprocess is not None:
        entries[PREPROCESS] = preprocess.to_json()
    if classes:
        name, count = Counter(classes).most_common(1)[0]
        if count > 1:
            raise OptionError(f"class name {name!r} appears {count} times: every class needs its own name")
        entries[CLASSES] = json.dumps(list(classes), ensure_ascii=False)
    if data is not None:
        entries[DATA] = data
    return entries
