"""A graph as a trainable module of torch: weights are Parameters, and operators run as functions of torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.exporters.ops import OPERATORS
from onnxprune.exporters.plan import RUN_ERRORS, Plan, Read, Step, plan

__all__ = ["MASK_SHARE", "OnnxModule", "to_torch"]

MASK_SHARE = 0.01  # share of exact zeros from which on a weight counts as pruned


def to_torch(
    model: ir.Model,
    *,
    trainable: Iterable[str] | str | None = None,
    keep_zeros: bool = True,
    min_zeros: float = MASK_SHARE,
    untie: bool = False,
    batchnorm: str = "frozen",
    dropout: bool = False,
    as_dict: bool = False,
) -> OnnxModule:
    """Return a model as a module that computes the same and can be trained; the model stays as it is.

    Args:
        model: A model of operators of the default domain, without bodies (If, Loop, Scan).
        trainable: Names, globs or ``re:`` patterns of the initialisers to train; None for all weights.
        keep_zeros: Keep weights that are exactly zero now at zero through training.
        min_zeros: Only in tensors of at least two axes with at least this share of zeros, in [0, 1].
        untie: Give every reader of a shared initialiser a Parameter of its own.
        batchnorm: ``train`` uses and updates batch statistics in training mode; ``frozen`` keeps the stored ones.
        dropout: Let Dropout nodes drop in training mode.
        as_dict: Let ``forward`` return a dict by output name, also of a single output.

    Raises:
        ModelError: A node cannot run in torch; it is named.
        OptionError: An option is out of range, or a pattern names nothing.
    """
    if batchnorm not in ("frozen", "train"):
        raise OptionError(f"batchnorm='{batchnorm}': frozen and train are accepted")
    if not 0 <= min_zeros <= 1:
        raise OptionError(f"min_zeros={min_zeros}: a share in [0, 1] is accepted")
    module = OnnxModule(plan(model, trainable, untie=untie), as_dict=as_dict)
    module.mode.batch_statistics, module.mode.dropout = batchnorm == "train", dropout
    if keep_zeros:
        module.set_masks(_zeros(module, min_zeros))
    return module


def _zeros(module: OnnxModule, share: float) -> dict[str, Tensor]:
    """Return masks of what is not zero, of the weights that are pruned."""
    masks = {}
    for name, parameter in module.trained().items():
        mask = parameter.detach() != 0
        zeros = mask.numel() - int(mask.sum())
        if parameter.ndim > 1 and zeros and zeros >= share * mask.numel():
            masks[name] = mask
    return masks


class OnnxModule(nn.Module):
    """A graph that torch runs, made by :func:`to_torch`.

    Attributes:
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.
        names: Names of initialisers by names of Parameters (``weights.conv1_weight``: ``conv1.weight``). A shared
            initialiser that was untied has Parameters ``name``, ``name/1``, ...
    """

    def __init__(self, made: Plan, *, as_dict: bool = False) -> None:
        super().__init__()
        self.inputs, self.outputs = made.inputs, made.outputs
        self.mode = made.mode
        self.fingerprint, self.copies = made.fingerprint, made.copies
        self.as_dict = as_dict
        self._steps = made.steps
        self.weights, self.constants, self._masks = nn.Module(), nn.Module(), nn.Module()
        self._weights: dict[str, str] = {}
        self._statistics: dict[str, str] = {}
        self._constants: dict[str, str] = {}
        for name, tensor in made.parameters.items():
            self._weights[name] = key = _free(name, self.weights)
            self.weights.register_parameter(key, nn.Parameter(tensor))
        for name, tensor in made.statistics.items():
            self._statistics[name] = key = _free(name, self.weights)
            self.weights.register_buffer(key, tensor)
        read = {(r.name, r.host) for step in made.steps for r in step.inputs if r is not None}
        self._host = {name: tensor for name, tensor in made.constants.items() if (name, True) in read}
        for name, tensor in made.constants.items():
            if (name, False) in read or name in made.outputs:
                self._constants[name] = key = _free(name, self.constants)
                self.constants.register_buffer(key, tensor, persistent=False)
        self.names = {f"weights.{key}": name for name, key in self._weights.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the Parameters by names of initialisers."""
        return {name: getattr(self.weights, key) for name, key in self._weights.items()}

    def statistics(self) -> dict[str, Tensor]:
        """Return the running statistics of BatchNormalization by names of initialisers."""
        return {name: getattr(self.weights, key) for name, key in self._statistics.items()}

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by names of initialisers: where they are False the weight is zero and stays so."""
        found = {name: getattr(self._masks, key, None) for name, key in self._weights.items()}
        return {name: mask for name, mask in found.items() if mask is not None}

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Replace all masks by these, and set what they hide to zero.

        Args:
            masks: Boolean tensors of the weights' shapes, by names of initialisers.

        Raises:
            OptionError: A name is not that of a Parameter, or a shape does not fit.
        """
        parameters = self.trained()
        for name, mask in masks.items():
            if name not in parameters or mask.shape != parameters[name].shape or mask.dtype != torch.bool:
                raise OptionError(
                    f"mask of '{name}': boolean masks of trained initialisers, in their shape, are accepted"
                )
        self._masks = nn.Module()
        for name, mask in masks.items():
            self._masks.register_buffer(self._weights[name], mask.to(parameters[name].device))
        self.apply_masks()

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set what the masks hide to exact zeros, as after a step of an optimiser with a momentum from before."""
        parameters = self.trained()
        for name, mask in self.masks.items():
            parameters[name].masked_fill_(~mask, 0)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the masks after every step of an optimiser."""
        optimizer.register_step_post_hook(lambda *_: self.apply_masks())

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor | tuple[Tensor, ...] | dict[str, Tensor]:
        """Run the graph on inputs in its order or by name.

        Returns:
            The tensor of a single output, a tuple of several, or a dict (``as_dict``).

        Raises:
            DataError: An input is missing or unknown.
            ModelError: A node fails on these inputs; it is named.
        """
        found = self.run(self._fed(inputs, named))
        if self.as_dict:
            return found
        return next(iter(found.values())) if len(found) == 1 else tuple(found.values())

    def run(self, feeds: Mapping[str, Tensor], names: Iterable[str] = ()) -> dict[str, Tensor]:
        """Run the graph and return its outputs and further values by name, such as features to distil.

        Raises:
            DataError: An input is missing or unknown.
            ModelError: A node fails on these inputs, or the graph computes no value of a name asked for.
        """
        self.mode.training = self.training
        values = self._stored(self._fed((), feeds))
        device = next((t.device for t in values.values() if t.device.type != "cpu"), torch.device("cpu"))
        host = dict(self._host)
        wanted = dict.fromkeys([*self.outputs, *names])
        for step in self._steps:
            results = _call(step, [_read(read, values, host, device) for read in step.inputs])
            for name, result in zip(step.outputs, results, strict=False):
                if name is not None and result is not None:
                    (host if step.host else values)[name] = result if step.host else result.to(device)
            for name in step.free:
                if name not in wanted:
                    values.pop(name, None)
                    host.pop(name, None)
        missing = [name for name in wanted if name not in values and name not in host]
        if missing:
            raise ModelError(f"the graph computes no value '{missing[0]}' (constants are folded)")
        return {name: values[name] if name in values else host[name].to(device) for name in wanted}

    def _fed(self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if len(inputs) > len(self.inputs):
            raise DataError(f"the graph has {len(self.inputs)} inputs, {len(inputs)} were given")
        feeds = {**dict(zip(self.inputs, inputs, strict=False)), **named}
        if set(feeds) != set(self.inputs) or len(feeds) != len(inputs) + len(named):
            raise DataError(f"inputs {sorted(feeds)} were given, the graph's are {sorted(self.inputs)}: each once")
        return feeds

    def _stored(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add parameters (masked, so that zeros get no gradient), statistics and constants to the inputs."""
        for name, parameter in self.trained().items():
            mask = getattr(self._masks, self._weights[name], None)
            values[name] = parameter if mask is None else torch.where(mask, parameter, torch.zeros_like(parameter))
        values.update(self.statistics())
        values.update({name: getattr(self.constants, key) for name, key in self._constants.items()})
        return values


def _free(name: str, owner: nn.Module) -> str:
    """Return a name for an attribute of a module that resembles an initialiser's."""
    stem = re.sub(r"\W", "_", name) or "_"
    found, count = stem, 0
    while hasattr(owner, found):
        count += 1
        found = f"{stem}_{count}"
    return found


def _read(read: Read | None, values: dict[str, Tensor], host: dict[str, Tensor], device: torch.device) -> Tensor | None:
    if read is None:
        return None
    if read.host:
        if read.name not in host:
            host[read.name] = values[read.name].cpu()  # sizes that depend on data: the device is waited for
        return host[read.name]
    if read.name not in values:
        values[read.name] = host[read.name].to(device)
    return values[read.name]


def _call(step: Step, inputs: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    try:
        found = OPERATORS[step.call.op](step.call, *inputs)
    except torch.OutOfMemoryError:
        raise
    except RUN_ERRORS as error:
        shapes = ", ".join("none" if t is None else str(tuple(t.shape)) for t in inputs)
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"node '{step.call.name}' ({step.call.op}) fails on inputs of shapes {shapes}: {said}"
        ) from error
    return found if isinstance(found, tuple) else (found,)
