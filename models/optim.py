"""The optimiser of a network, its groups of weight decay, and the learning rate at every step."""

from __future__ import annotations

import math
from bisect import bisect_right

import torch
from torch import nn

from onnxprune.models.options import TrainOptions

__all__ = ["optimizer_for", "rate"]


def optimizer_for(module: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Make the optimiser; with ``no_bias_decay`` vectors (biases, what normalisation learns) are not decayed."""
    groups = [{"params": list(module.parameters()), "weight_decay": options.weight_decay}]
    if options.no_bias_decay:
        bare = [parameter for parameter in module.parameters() if parameter.ndim < 2]
        rest = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
        groups = [
            {"params": rest, "weight_decay": options.weight_decay},
            {"params": bare, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, lr=options.lr)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr)
    momentum = options.momentum
    return torch.optim.SGD(groups, lr=options.lr, momentum=momentum, nesterov=options.nesterov and momentum > 0)


def rate(options: TrainOptions, epochs: float, steps: int) -> float:
    """Return the learning rate.

    Args:
        options: Rate at the start, schedule, warmup.
        epochs: Epochs done so far, with the fraction of the present one.
        steps: Steps per epoch; the first step of a warmup has one step's share of the rate.
    """
    if epochs < options.warmup:
        return options.lr * min(1.0, (epochs + 1 / steps) / options.warmup)
    if options.schedule == "cosine":
        # A warmup as long as the run leaves the cosine nothing.
        span = max(options.epochs - options.warmup, 1e-9)
        return options.lr * 0.5 * (1 + math.cos(math.pi * (epochs - options.warmup) / span))
    if options.schedule in ("step", "multistep"):
        halves = (options.epochs * 0.5, options.epochs * 0.75)
        milestones = options.milestones if options.schedule == "step" and options.milestones else halves
        return options.lr * options.gamma ** bisect_right(milestones, epochs)
    return options.lr
