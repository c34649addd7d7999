"""``python -m onnxprune`` is the command line."""

from __future__ import annotations

from onnxprune.cli import main

if __name__ == "__main__":
    main(prog_name="onnxprune")
