"""The running mean of a network's weights over the steps of training, which is often better than the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """An exponential moving average of all weights and statistics (Polyak, Juditsky, 1992; Tarvainen, Valpola, 2017).

    After step t the average moves by 1 - min(decay, (1 + t) / (10 + t)) towards the weights, so that it forgets where
    it began. Integers (counters) are those of the last step; what is zero at every step stays exactly zero.

    Args:
        module: Where it begins.
        decay: Share of the average that stays after a step, above 0 and below 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the weights after a step into the average."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            mean = self._values[name]
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)

    @contextmanager
    def worn(self, module: nn.Module) -> Iterator[None]:
        """Let a network have the averages for as long as this lasts."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self._values)
        try:
            yield
        finally:
            module.load_state_dict(own)

    def state(self) -> dict[str, int | dict[str, Tensor]]:
        """Return what :meth:`load` takes."""
        return {"steps": self.steps, "values": self._values}

    def load(self, state: Mapping[str, int | dict[str, Tensor]]) -> None:
        """Go on from a state."""
        steps, values = state["steps"], state["values"]
        assert isinstance(steps, int) and isinstance(values, dict)
        self.steps = steps
        for name, value in values.items():
            self._values[name].copy_(value)
