"""Running the command line in this process, as the shell would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run ``onnxprune`` with the given words and return status, stdout and stderr."""

    def run(*words: object) -> Result:
        from onnxprune.cli import main

        return CliRunner().invoke(main, [str(word) for word in words])

    return run
