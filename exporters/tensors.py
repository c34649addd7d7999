"""Tensors of a model as tensors of torch, in the same element type, and back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

__all__ = ["from_onnx", "to_array", "torch_dtype"]

_KINDS = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    # torch has no 4-bit numbers; their values fit into bytes.
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
}


def torch_dtype(kind: ir.DataType | int) -> torch.dtype | None:
    """Return torch's element type for an ONNX one, or None where it has none."""
    return _KINDS.get(ir.DataType(kind))


def from_onnx(tensor: ir.TensorProtocol) -> Tensor | None:
    """Return a copy of a tensor, or None where torch has no such element type."""
    kind = torch_dtype(tensor.dtype)
    if kind is None:
        return None
    data = np.asarray(tensor.numpy())
    if kind == torch.bfloat16:
        return torch.from_numpy(np.array(data, dtype=np.float32)).to(kind)
    if tensor.dtype in (ir.DataType.INT4, ir.DataType.UINT4):
        return torch.from_numpy(np.array(data, dtype=np.int8 if kind == torch.int8 else np.uint8))
    return torch.from_numpy(np.array(data, order="C"))


def to_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values on the host; bfloat16, which numpy lacks, as float32."""
    found = tensor.detach().cpu()
    return np.asarray((found.float() if found.dtype == torch.bfloat16 else found).numpy())
