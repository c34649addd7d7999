"""Reading a source file: what it must be before anything else looks at it."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxprune.errors import ModelError

PROTOBUF_LIMIT = 2**31 - 1


def parse(file: Path) -> onnx.ModelProto:
    """Return the model in ``file``, which protobuf could read and which holds a graph.

    Raises:
        ModelError: The file is missing, empty, too large, truncated or not ONNX.
    """
    from google.protobuf.message import DecodeError

    try:
        found = file.exists()
    except OSError as error:
        raise ModelError(f"'{file}' cannot be read: {error.strerror}") from error
    if not found:
        raise ModelError(f"'{file}' does not exist; give the path of an .onnx file")
    if not file.is_file():
        raise ModelError(f"'{file}' is not a file; give the path of an .onnx file")
    size = file.stat().st_size
    if size == 0:
        raise ModelError(f"'{file}' is empty (0 bytes); an .onnx file is expected")
    if size > PROTOBUF_LIMIT:
        raise ModelError(f"'{file}' has {size:,} bytes, over protobuf's 2 GiB; save it with external data")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ModelError(f"'{file}' is truncated or not an ONNX file: protobuf cannot read it") from error
    except OSError as error:
        raise ModelError(f"'{file}' cannot be read: {error.strerror}") from error
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(f"'{file}' is truncated or not an ONNX file: it holds no graph or no IR version")
    return proto


def use_plain_domain(proto: onnx.ModelProto) -> None:
    """Write the standard operators' domain as "", for which "ai.onnx" is another spelling."""
    for entries in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        for entry in entries:
            entry.domain = "" if entry.domain == "ai.onnx" else entry.domain


def check_source(proto: onnx.ModelProto, file: Path, uses_external: bool) -> bool:
    """Check the source and return whether it passes with full shape inference too.

    Raises:
        ModelError: The checker refuses it.
    """
    try:
        target = str(file) if uses_external else file.read_bytes()
        # What passes the full check passes the plain one too, and large models take seconds for each.
        if _passes_full(target):
            return True
        onnx.checker.check_model(target)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"'{file}' is not a valid ONNX model: {first_line(error)}") from error
    return False


def _passes_full(target: bytes | str) -> bool:
    try:
        onnx.checker.check_model(target, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return False
    return True


def first_line(error: BaseException) -> str:
    """Return the first line of a message that may have many, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]
