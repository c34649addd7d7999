"""What each weight of a module costs in one run: the multiplications it takes part in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from onnxprune.errors import OptionError

__all__ = ["weight_macs"]


def weight_macs(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Count the multiply-accumulates of each weight of two axes and more in convolutions and matrix products.

    The module runs once, in evaluation mode, and is as it was afterwards. A weight that no product reads, such as a
    table of embeddings, has 0; so has one of which products read a computed copy alone.

    Args:
        module: Any module; its convolutions and products are those that ``torch.utils.flop_counter`` knows.
        inputs: Its inputs; the counts are of all their examples.

    Returns:
        Counts by names of Parameters.

    Raises:
        OptionError: If the module has a recurrent layer of torch, whose products are hidden in one operator.
    """
    for name, each in module.named_modules():
        if isinstance(each, nn.RNNBase):
            kind = type(each).__name__
            raise OptionError(f"decay-by macs: torch does not tell what the {kind} {name!r} multiplies; take layer")
    training = [each for each in module.modules() if each.training]
    module.eval()
    counted = _Count(module)
    try:
        # Without gradients torch takes fused encoder layers, whose products cannot be told apart.
        with torch.enable_grad(), counted:
            module(*inputs)
    finally:
        for each in training:
            each.training = True
    return counted.macs


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its __init_subclass__ untyped
    """Add up products by the storage of what they read: views of a Parameter (transposed, reshaped) count for it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # and its __init__
        weights = {name: each for name, each in module.named_parameters() if each.ndim >= 2}
        self.macs = dict.fromkeys(weights, 0)
        self._names = {each.untyped_storage().data_ptr(): name for name, each in weights.items() if each.numel()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        flops: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if flops is not None:
            for each in args:
                if isinstance(each, Tensor) and each.untyped_storage().data_ptr() in self._names:
                    name = self._names[each.untyped_storage().data_ptr()]
                    self.macs[name] += flops(*args, **(kwargs or {}), out_val=out) // 2
        return out
