"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.exporters.ops.call import Call, Operator, alike


def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two stacks of matrices."""
    a, b = alike(a, b)
    return torch.matmul(a, b)


def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Return ``alpha A B + beta C`` with A and B transposed where the node says so."""
    a, b, c = alike(a, b, c)
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    left = a.t() if call.integer("transA", 0) else a
    right = b if call.integer("transB", 0) else b.t()
    if alpha == 1 and c is not None and c.ndim == 1 and beta == 1 and len(c) == len(right):
        return functional.linear(left, right, c)
    product = functional.linear(left, right)
    product = product if alpha == 1 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1 else beta * c)


def einsum(call: Call, *inputs: Tensor) -> Tensor:
    """Return a sum of products in Einstein's notation."""
    return torch.einsum(call.text("equation", "").replace(" ", ""), *alike(*inputs))


OPERATORS: dict[str, Operator] = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
